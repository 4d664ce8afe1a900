"""Tasks of pictures: where paths begin, whose names the classes have, what a label budget leaves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.recipes.pictures import DETR, OURS
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from decero.config.command_line import Call
from decero.config.drawings import EvaluateDrawings
from decero.data.corpus import ROW, load_corpus
from decero.doctor.inspected_run import InspectedRun
from decero.errors import UserError
from decero.tasks import ImageClassification, ObjectDetection, SemanticSegmentation
from decero.tasks.picture_task import picture_source


@pytest.fixture
def write(tmp_path):
    """Write rows and their pictures, each of one gray value, into a folder; return the file of the rows."""

    def write(name, rows, grays):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number, gray in enumerate(grays):
            Image.fromarray(np.full((16, 16), gray, np.uint8)).save(folder / f"{number}.png")
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def task(tmp_path):
    def build(kind, model, files, eval_only=False, **data):
        settings = {"output": str(tmp_path / "run"), "model": model, "training": {"max_train_steps": 1}}
        config = kind.Config.parse(settings | {"data": {"files": files, **data}}, "x")
        config._call = Call(eval_only=eval_only)
        return kind(config)

    return build


@pytest.fixture
def ours(tmp_path):
    (tmp_path / "ours.yaml").write_text(json.dumps(OURS))
    return {"config": str(tmp_path / "ours.yaml")}


def vit(folder, names):
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 17}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, **labels))
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model


def segformer(folder, names):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    one = {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1], "hidden_sizes": [16], "patch_sizes": [3]}
    more = {"strides": [2], "num_attention_heads": [1], "mlp_ratios": [1], "decoder_hidden_size": 16}
    SegformerForSemanticSegmentation(SegformerConfig(**one, **more, **labels)).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def test_paths_begin_at_the_folder_of_their_own_file(write, task, tmp_path):
    files = [
        write(name, [{"image": "0.png", "label": name}] * 2, [gray]) for name, gray in (("black", 0), ("white", 255))
    ]
    vit(tmp_path / "vit", ["black", "white"])
    built = task(ImageClassification, {"name_or_path": str(tmp_path / "vit")}, {"train": files}, image_size=16)
    rows = built.tokenize(built.corpus.splits["train"], "train")[""]
    seen = [(built.corpus.label_names[row["labels"]], np.frombuffer(row["pixels"], np.uint8).mean()) for row in rows]
    assert seen == [("black", 0.0)] * 2 + [("white", 255.0)] * 2


def test_rows_held_out_are_the_same_for_all_who_read(write, task, tmp_path):
    """Their pictures are found in the folder of train, and the content decides the split."""
    rows = [{"image": f"{n}.png", "label": "ab"[n % 2]} for n in range(40)]
    data = {"files": {"train": write("all", rows, range(40))}, "test_fraction": 0.3}
    vit(tmp_path / "vit", ["a", "b"])
    built = task(ImageClassification, {"name_or_path": str(tmp_path / "vit")}, image_size=16, **data)
    assert len(built.tokenize(built.corpus.splits["test"], "test")[""]) == len(built.corpus.splits["test"][""]) > 0
    measured = EvaluateDrawings.parse({"output": str(tmp_path), "model": "m", "classifier": "c", "data": data}, "x")
    test = load_corpus(**picture_source(measured.data))["test"]
    assert test["image"][:] == built.corpus.splits["test"][""]["image"][:]


def test_repeats_are_sought_in_the_folder_of_each_split(write, task, ours):
    """Equal names of files are no equal pictures; equal pictures may have other names."""
    files = {
        "train": write("train", boxes(["cat"] * 3), [10, 20, 30]),
        "validation": write("validation", boxes(["cat"] * 2), [40, 50]),
        "test": write("test", boxes(["cat"] * 2), [60, 10]),
    }
    run = InspectedRun(task(ObjectDetection, ours, files, image_size=16))
    keys = {split: folded.keys.tolist() for split, folded in run.folded.items()}
    assert len(set(keys["train"] + keys["validation"] + keys["test"])) == 6
    assert keys["test"][1] == keys["train"][0]


@pytest.mark.parametrize(("saved", "said"), [(["Cat", "Dog"], ["cat", "dog"]), (["LABEL_0", "LABEL_1"], ["0", "1"])])
@pytest.mark.parametrize("eval_only", [True, False])
def test_a_head_that_knows_the_classes_is_kept(write, task, tmp_path, saved, said, eval_only):
    model = vit(tmp_path / "vit", saved)
    files = write("pictures", [{"image": f"{n}.png", "label": said[n % 2]} for n in range(8)], range(8))
    source, files = {"name_or_path": str(tmp_path / "vit")}, {"train": files, "test": files}
    built = task(ImageClassification, source, files, eval_only)
    assert torch.equal(built.build_model().classifier.weight, model.classifier.weight)
    if not eval_only:
        other = task(ImageClassification, source, files)
        other.corpus = other.corpus._replace(label_names=("new", "names"))
        assert not torch.equal(other.build_model().classifier.weight, model.classifier.weight)


def test_masks_hold_numbers_so_the_order_of_names_counts(write, task, tmp_path):
    files = write("masks", [{"image": "0.png", "mask": f"{n}.png"} for n in range(2)], range(2))
    files, source = {"train": files, "test": files}, {"name_or_path": str(tmp_path / "segformer")}
    segformer(tmp_path / "segformer", ["sky", "road", "car"])
    same = {"class_names": ["sky", "road", "car"]}
    assert "the head is kept: 3 classes" in task(SemanticSegmentation, source, files, **same).corpus.notes[-1]
    other = task(SemanticSegmentation, source, files, class_names=["road", "sky", "car"])
    assert other.corpus.label_names == ("road", "sky", "car")
    assert "the head is new" in other.corpus.notes[-1]
    numbers = task(SemanticSegmentation, source, files)
    assert numbers.corpus.label_names == ("0", "1"), "the checkpoint's names are not those of your ids"
    assert task(SemanticSegmentation, source, files, True).corpus.label_names == ("sky", "road", "car")
    path = tmp_path / "segformer" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_reduce_labels": True}))
    scored = task(SemanticSegmentation, source, files, True).corpus.notes[-1]
    assert "subtracts 1 from the ids of masks (do_reduce_labels)" in scored
    assert scored.endswith("so 0 must be sky in your masks")
    new = task(SemanticSegmentation, source, files, class_names=["road", "sky", "car"]).corpus.notes
    assert not any("do_reduce_labels" in note for note in new), "a new head learns the ids of your masks"
    with pytest.raises(UserError, match=r"must mean what they mean to .*: 0 sky, 1 road, 2 car; write masks with thes"):
        _ = task(SemanticSegmentation, source, files, True, class_names=["road", "sky", "car"]).corpus


@pytest.mark.parametrize("names", [None, ["ground", "object"]])
def test_masks_of_0_and_255_are_refused(task, ours, tmp_path, names):
    Image.new("L", (16, 16)).save(tmp_path / "picture.png")
    Image.fromarray(np.repeat(np.uint8([0, 255]), 128).reshape(16, 16)).save(tmp_path / "mask.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "picture.png", "mask": "mask.png"}\n')
    built = task(SemanticSegmentation, ours, {"train": str(tmp_path / "rows.jsonl")}, image_size=16, class_names=names)
    said = r"train: masks hold only id 0, besides 255, which is not scored .data.ignored_id.; write the object as 1, or"
    with pytest.raises(UserError, match=said):
        built.tokenize(built.corpus.splits["train"], "train")


def test_classes_without_a_pixel_are_named(write, task, ours):
    files = write("masks", [{"image": "0.png", "mask": f"{n}.png"} for n in range(2)], range(2))
    names = ["ground", "dark", "light"]
    built = task(SemanticSegmentation, ours, {"train": files}, image_size=16, class_names=names)
    built.tokenize(built.corpus.splits["train"], "train")
    assert built.corpus.notes[-1] == "train: no pixel is of the class light: the model cannot learn it"


def boxes(categories):
    return [
        {"image": f"{n}.png", "objects": {"bbox": [[1, 1, 5, 5]], "category": [c]}} for n, c in enumerate(categories)
    ]


@pytest.mark.parametrize(("split", "flat"), [("train", True), ("test", True), ("train", False)])
def test_a_category_must_not_be_null(write, task, ours, split, flat):
    rows = {"train": boxes(["cat", "dog"]), "test": boxes(["dog", "cat"])}
    rows[split][1]["objects"] = {"bbox": [[1, 1, 5, 5]] * 2, "category": ["cat", None]}
    if not flat:
        for row in [row for part in rows.values() for row in part]:
            pairs = zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
            row["objects"] = [{"bbox": box, "category": kind} for box, kind in pairs]
    built = task(ObjectDetection, ours, {each: write(each, rows[each], range(2)) for each in rows}, image_size=16)
    with pytest.raises(UserError, match=r"row 1, box 1: it has no category .null.; write one, or remove the box"):
        built.tokenize(built.corpus.splits[split], split)


def test_what_is_held_out_is_named_by_the_row_of_its_file(write, task, ours, tmp_path):
    held_out, grays = {"validation_fraction": 0.4}, range(0, 240, 6)
    files = {"train": write("boxes", boxes(["cat", "dog"] * 20), grays)}

    def read(kind, files, split):
        built = task(kind, ours, files, image_size=16, **held_out)
        built.tokenize(built.corpus.splits[split], split)
        return built.corpus.splits

    kept = read(ObjectDetection, files, "train")
    rows = {split: kept[split][""][ROW][:] for split in ("train", "validation")}
    assert sorted(rows["train"] + rows["validation"]) == [*range(40)]
    for split in rows:
        number = rows[split][-1]
        assert number > len(rows[split])  # so it is not the place of the row in its split
        wrong = boxes(["cat", "dog"] * 20)
        wrong[number]["objects"]["category"] = [None]
        files = {"train": write("wrong", wrong, grays)}
        with pytest.raises(UserError, match=rf"wrong/rows.jsonl, row {number}, box 0: it has no category .null."):
            read(ObjectDetection, files, split)
        masks = [{"image": f"{n}.png", "mask": "1.png" if n != number else "none.png"} for n in range(40)]
        files = {"train": write("masks", masks, grays)}
        with pytest.raises(UserError, match=rf"masks/rows.jsonl, row {number}, mask .*none.png.: cannot read the pic"):
            read(SemanticSegmentation, files, split)


def test_an_id_of_a_mask_that_is_too_large_is_named(write, task, ours, tmp_path):
    files = write("masks", [{"image": f"{n}.png", "mask": f"{n}.png"} for n in range(3)], range(3))
    Image.fromarray(np.full((16, 16), 300, np.uint16)).save(tmp_path / "masks" / "2.png")
    with pytest.raises(UserError, match=r"rows.jsonl, row 2, mask: it has the id 300; ids are 0 to 255"):
        _ = task(SemanticSegmentation, ours, {"train": files}, image_size=16).corpus


def test_categories_may_be_numbers(write, task, ours):
    files = {"train": write("train", boxes([10, 2, 10, 2]), range(4)), "test": write("test", boxes([2, 10]), range(2))}
    built = task(ObjectDetection, ours, files, image_size=16)
    assert built.corpus.label_names == ("2", "10")
    rows = built.tokenize(built.corpus.splits["test"], "test")[""]
    assert rows["classes"][:] == [[0], [1]]


def test_detectors_need_a_column_for_no_object(write, task, ours, tmp_path):
    (tmp_path / "sigmoid.yaml").write_text(json.dumps(DETR | {"model_type": "conditional_detr"}))
    files = {"train": write("boxes", boxes(["cat", "dog"]), range(2))}
    data = {"image_size": 16, "validation_fraction": 0, "test_fraction": 0}
    built = task(ObjectDetection, {"config": str(tmp_path / "sigmoid.yaml")}, files, **data)
    with pytest.raises(UserError, match='its head has 2 columns for 2 classes, and none for "no object"'):
        built.build_model()
    assert task(ObjectDetection, ours, files, **data).build_model().training


def test_a_label_budget_does_not_decide_the_classes(write, task, ours, tmp_path):
    files = {"train": write("boxes", boxes(["cat", "dog"] * 3), range(6))}
    built = task(ObjectDetection, ours, files | {"test": files["train"]}, image_size=16, max_train_rows=1)
    assert built.corpus.label_names == ("cat", "dog")
    assert len(built.tokenize(built.corpus.splits["test"], "test")[""]) == 6
    files = {"train": write("masks", [{"image": "0.png", "mask": f"{n % 3}.png"} for n in range(9)], range(3))}
    segformer(tmp_path / "segformer", ["x", "y"])
    source = {"name_or_path": str(tmp_path / "segformer")}
    for seed in range(4):
        built = task(SemanticSegmentation, source, files | {"test": files["train"]}, max_train_rows=1)
        built.config.seed = seed
        assert built.corpus.label_names == ("0", "1", "2")


@pytest.mark.parametrize("form", ["xywh", "cxcywh"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_as_shares_of_the_picture_are_refused(write, task, ours, split, form):
    rows = {"train": boxes(["cat", "dog"]), "test": boxes(["dog", "cat"])}
    for row in [row for part in rows.values() for row in part]:
        row["objects"]["bbox"] = [[6, 6, 5, 5]]
    rows[split][0]["objects"]["bbox"] = [[0.5, 0.25, 0.2, 0.5]]
    rows[split][1]["objects"]["bbox"] = [[0.5, 0.5, 1, 1]]
    files = {each: write(each, rows[each], range(2)) for each in rows}
    built = task(ObjectDetection, ours, files, image_size=16, box_format=form)
    said = r"rows.jsonl, row 0, box 0 \[0.5, 0.25, 0.2, 0.5\]: here all boxes lie in \[0, 1\], .*; multiply them by the"
    with pytest.raises(UserError, match=said):
        built.tokenize(built.corpus.splits[split], split)
    other = {"train": "test", "test": "train"}[split]
    assert built.tokenize(built.corpus.splits[other], other)[""]["width"][:] == [16, 16]


@pytest.mark.parametrize("more", [[[0, 0, 1, 1]], [[0.5, 0, 0.5, 1], [0, 0, 1, 3]]], ids=["whole", "one larger"])
def test_boxes_of_a_pixel_are_kept(write, task, ours, more):
    rows = boxes(["cat", "dog"])
    for row in rows:
        row["objects"] = {"bbox": more, "category": ["cat"] * len(more)}
    built = task(ObjectDetection, ours, {"train": write("train", rows, range(2))}, image_size=16, test_fraction=0)
    found = built.tokenize(built.corpus.splits["train"], "train")[""]
    assert [len(each) for each in found["classes"]] == [len(more)] * len(found)


def test_folders_named_by_class_are_read(task, tmp_path):
    """A mean gray of 40 is a cat, of 200 a dog, whatever the files are called."""
    for name, gray in (("cat", 40), ("dog", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            picture = np.full((16, 16), gray + number, np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / name / f"{number}.png")
    vit(tmp_path / "vit", ["cat", "dog"])
    data = {"name": str(tmp_path / "photos"), "label_column": "label", "image_size": 16}
    built = task(ImageClassification, {"name_or_path": str(tmp_path / "vit")}, None, **data)
    assert built.corpus.label_names == ("cat", "dog")
    seen = set()
    for split, parts in built.corpus.splits.items():
        for row in built.tokenize(parts, split)[""]:
            bright = np.frombuffer(row["pixels"], np.uint8).mean()
            assert row["labels"] == (bright > 100)
            seen.add(bright)
    assert len(seen) == 24
