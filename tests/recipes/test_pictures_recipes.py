"""The recipes that read pictures, from files to the command that uses the model."""

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tests.recipes.pictures import DETR, NAMES, OURS, SEGFORMER, SETR, VIT, png, row, write_splits
from transformers import pipeline

from decero.cli.main import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Write the data, a preset and a configuration; return what writes a configuration."""
    folder = tmp_path_factory.mktemp("pictures")
    files = write_splits(folder)

    def write(preset, data=None, **training):
        (folder / f"{preset['model_type']}.yaml").write_text(json.dumps(preset))
        steps = {"max_train_steps": 24, "global_batch_size": 8, "per_device_batch_size": 3, "logging_steps": 1}
        settings = {
            "output": "OUTPUT", "model": {"config": str(folder / f"{preset['model_type']}.yaml")},
            "data": {"files": files, "augment": {"padding": 2}} | (data or {}), "optim": {"learning_rate": 5e-3},
            "training": steps | {"save_steps": 8, "save_total_limit": 9} | training, "tracking": {"trackers": []},
        }  # fmt: skip
        path = folder / f"{preset['model_type']}_run.yaml"
        path.write_text(json.dumps(settings))
        return path

    return write


def row_picture(number):
    return Image.open(io.BytesIO(row(number)["image"]))


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def logits_of(output):
    return np.stack(pd.read_parquet(output / "predictions.parquet")["logits"])


def losses_of(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def resumed(launch, recipe, config, output, *words):
    """Cut a finished run back to its checkpoint of step 8, resume it, and return whether it ends with its weights."""
    whole = weights(output)
    for path in (output / "checkpoints").iterdir():
        if int(re.sub(r"\D", "", path.name) or 0) != 8:
            shutil.rmtree(path)
    shutil.rmtree(output / "model")
    (output / "result.json").unlink()
    done = launch(recipe, config, f"output={output}", *words, "--resume")
    assert "at step 8 of " in done.stdout
    again = weights(output)
    return all((again[name] == whole[name]).all() for name in whole)


def test_classify_pictures_from_files_to_answers(launch, pictures, tmp_path, capsys):
    config = pictures(VIT)
    output = tmp_path / "run"
    launch("finetune_image_classification", config, f"output={output}")
    record = json.loads((output / "result.json").read_text())
    assert record["metric"]["accuracy"] > 0.9
    assert record["pictures"] == 4 * 41  # of an epoch, the last step has one
    assert record["total_flos"] > 1000 * record["pictures"]
    table = pd.read_parquet(output / "predictions.parquet")
    assert list(table["row"]) == list(range(17))
    assert resumed(launch, "finetune_image_classification", config, output)

    Image.new("RGB", (30, 20), (20, 20, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (3, 2), (250, 250, 250)).save(tmp_path / "b.png")
    main(["classify", str(output / "model"), str(tmp_path / "a.png")])
    path, label, probability = capsys.readouterr().out.strip().split("\t")
    assert path.endswith("a.png")
    with Image.open(tmp_path / "a.png") as image:
        theirs = pipeline("image-classification", str(output / "model"))(image)
    assert theirs[0]["label"] == label
    assert theirs[0]["score"] == pytest.approx(float(probability), abs=1e-4)
    main(["classify", str(output / "model"), str(tmp_path), "--jsonl"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row["labels"]) for row in rows] == [set(NAMES)] * 2

    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(SystemExit) as ended:
        main(["classify", str(output / "model"), str(tmp_path / "c.png")])
    assert ended.value.code == 2
    assert re.search(r"c\.png: cannot read the picture: .*; replace it", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["generate", str(output / "model"), "text"])
    assert "this vit model classifies pictures; use decero classify" in capsys.readouterr().err

    again = launch("finetune_image_classification", config, f"output={tmp_path / 'e'}",
                   f"model.name_or_path={output / 'model'}", "--eval-only")  # fmt: skip
    assert f"test accuracy {record['metric']['accuracy']:.4f}" in again.stdout


NOISE = "objective.denoising={groups: 2}"
PASTE = {"mask_column": "mask", "augment": {"copy_paste": 0.5}}
PROPOSE = "model.overrides={anchor_prior: true, box_bias: true, proposals: true}"


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "preset", "words", "data"), [
    ("finetune_image_classification", VIT, ["model.overrides.hidden_dropout_prob=0.0"], {}),
    ("finetune_object_detection", DETR, ["model.overrides.dropout=0.0"], {}),
    ("finetune_object_detection", OURS, [NOISE, PROPOSE], PASTE),
    ("finetune_semantic_segmentation", SETR, [], PASTE | {"class_names": ["ground", "dark", "light"]}),
], ids=["classes", "objects", "denoising", "masks"])  # fmt: skip
def test_two_processes_train_as_one(launch, pictures, tmp_path, two_processes, recipe, preset, words, data):
    words = ["training.max_train_steps=4", *words]
    config = pictures(preset, data)
    launch(recipe, config, f"output={tmp_path / 'two'}", *words, launcher=two_processes)
    launch(recipe, config, f"output={tmp_path / 'one'}", *words)
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), rel=1e-4)
    if preset is VIT:
        assert logits_of(tmp_path / "two") == pytest.approx(logits_of(tmp_path / "one"), abs=1e-4)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.image_size=3"], "data.image_size: 3 x 3 pixels are less than a patch of .*, 4 x 4"),
        (["model.overrides.num_channels=2"], "reads 2 channels; pictures have 1"),
        (["data.image_column=pictur"], "no column 'pictur'"),
        (["data.image_column=label"], "cannot read the picture"),
        (["training.global_batch_tokens=9"], "pictures have no tokens; set training.global_batch_size"),
        (["data.augment.flip=true"], "unknown setting data.augment.flip"),
    ],
)
def test_wrong_settings_of_pictures_are_one_line(launch, pictures, tmp_path, words, line):
    done = launch("finetune_image_classification", pictures(VIT), f"output={tmp_path / 'x'}", *words, expect=2)
    assert re.search(line, done.stderr)
    assert len(done.stderr.strip().splitlines()) <= 2


@pytest.mark.parametrize("recipe", ["finetune_object_detection", "finetune_semantic_segmentation"])
def test_a_split_without_answers_is_noted(launch, pictures, tmp_path, recipe):
    rows = [row(number) for number in range(3)]
    nothing = {"mask": png(np.full((16, 16), 255, np.uint8)), "objects": {"bbox": [], "category": []}}
    blank = [each | nothing for each in rows]
    schema = pa.Table.from_pylist(rows).schema
    pq.write_table(pa.Table.from_pylist(blank, schema=schema), tmp_path / "blank.parquet")
    config = pictures(*((OURS, {}) if "object" in recipe else (SETR, {"class_names": ["ground", "dark", "light"]})))
    done = launch(recipe, config, f"output={tmp_path / 'x'}", f"data.files.test={tmp_path}/blank.parquet",
                  "training.max_train_steps=1")  # fmt: skip
    assert ("test: no picture has an object" in done.stdout) == ("object" in recipe)
    assert ("test: no pixel is scored" in done.stdout) == ("segmentation" in recipe)


def test_a_forecast_counts_pictures(launch, pictures, tmp_path):
    done = launch("finetune_image_classification", pictures(VIT), f"output={tmp_path / 'x'}", "--dry-run")
    assert "training pictures 41" in done.stdout
    assert "tokens" not in done.stdout.split("parameters")[1].split("not included")[0]


@pytest.mark.slow
def test_pictures_are_compared_with_pixels_and_a_cnn(launch, pictures, tmp_path):
    config = json.loads(pictures(VIT).read_text())
    contenders = {"vit": {"model": config["model"]}, "pixels": {"baseline": "logistic"}, "cnn": {"baseline": "cnn"}}
    settings = {
        "output": str(tmp_path / "compare"), "task": "finetune_image_classification", "reference": "vit", "seeds": [0],
        "contenders": contenders, "data": config["data"], "optim": config["optim"], "tracking": {"trackers": []},
        "training": config["training"] | {"save_steps": None, "eval_strategy": "no"},
    }  # fmt: skip
    (tmp_path / "compare.yaml").write_text(json.dumps(settings))
    done = launch("compare", tmp_path / "compare.yaml")
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 3
    assert all("failed" not in line for line in lines), lines
    assert (tmp_path / "compare" / "report.html").is_file()


@pytest.mark.long
def test_our_segmentation_model_resumes_exactly(launch, pictures, tmp_path):
    config = pictures(SETR, PASTE | {"class_names": ["ground", "dark", "light"]}, max_train_steps=16)
    launch("finetune_semantic_segmentation", config, f"output={tmp_path / 'run'}")
    assert resumed(launch, "finetune_semantic_segmentation", config, tmp_path / "run")


def test_segment_pictures_from_files_to_masks(launch, pictures, tmp_path, capsys):
    names = ["ground", "dark", "light"]
    config = pictures(SEGFORMER, {"class_names": names}, max_train_steps=16)
    output = tmp_path / "run"
    done = launch("finetune_semantic_segmentation", config, f"output={output}", "objective.label_smoothing=0.05")
    assert "has batch norm: its results depend on training.per_device_batch_size" in done.stdout
    record = json.loads((output / "result.json").read_text())
    assert set(record["metric"]) == {"mean_iou", "pixel_accuracy"}
    losses = losses_of(output)
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    assert set(record["by_class"]) == set(names)
    table = pd.read_parquet(output / "predictions.parquet")
    assert np.stack(table["true"]).sum() == 17 * 16 * 16
    assert resumed(launch, "finetune_semantic_segmentation", config, output, "objective.label_smoothing=0.05")

    row_picture(1).save(tmp_path / "a.png")
    main(["segment", str(output / "model"), str(tmp_path / "a.png"), "--out", str(tmp_path / "painted")])
    found = json.loads(capsys.readouterr().out)
    assert sum(found["shares"].values()) == pytest.approx(1)
    theirs = pipeline("image-segmentation", str(output / "model"))(row_picture(1))
    shares = {each["label"]: np.asarray(each["mask"]).astype(bool).mean() for each in theirs}
    assert shares == pytest.approx(found["shares"])
    with Image.open(found["mask"]) as mask, Image.open(found["overlay"]) as overlay:
        assert mask.size == (16, 16)
        assert overlay.size == (320, 320)
    done = launch("finetune_semantic_segmentation", config, f"output={tmp_path / 'x'}",
                  "data.class_names=[ground, dark]", expect=2)  # fmt: skip
    assert re.search(r"train.parquet, row 1: the mask has the unknown id 2; ids are 0 to 1, or 255", done.stderr)


@pytest.mark.long
def test_detect_objects_from_files_to_boxes(launch, pictures, tmp_path, capsys):
    pytest.importorskip("pycocotools")
    config = pictures(DETR, max_train_steps=16)
    output = tmp_path / "run"
    launch("finetune_object_detection", config, f"output={output}")
    record = json.loads((output / "result.json").read_text())
    assert set(record["metric"]) == {"map", "map_50", "map_75"}
    table = pd.read_parquet(output / "predictions.parquet")
    assert [len(boxes) for boxes in table["predicted_boxes"]] == [3] * 17
    assert resumed(launch, "finetune_object_detection", config, output)

    row_picture(1).save(tmp_path / "a.png")
    main(["detect", str(output / "model"), str(tmp_path / "a.png"), "--threshold", "0", "--out", str(tmp_path / "o")])
    found = json.loads(capsys.readouterr().out)
    assert len(found["objects"]) == 3
    theirs = pipeline("object-detection", str(output / "model"), threshold=0.0)(row_picture(1))
    best = max(theirs, key=lambda each: each["score"])
    assert (best["label"], best["score"]) == (found["objects"][0]["label"], pytest.approx(found["objects"][0]["score"]))
    assert list(best["box"].values()) == pytest.approx(found["objects"][0]["box"], abs=1)
    assert all(0 <= value <= 16 for each in found["objects"] for value in each["box"])
    with Image.open(found["overlay"]) as overlay:
        assert overlay.size == (320, 320)

    done = launch("finetune_object_detection", config, f"output={tmp_path / 'x'}", "data.box_format=xyxy", expect=2)
    assert re.search(r"train.parquet, row \d+, box 0 \[.*\]: it has no size, .*set data.box_format", done.stderr)


def test_our_detector_takes_three_steps_and_detects(launch, pictures, tmp_path, capsys):
    pytest.importorskip("pycocotools")
    config, output = pictures(OURS, PASTE, max_train_steps=3), tmp_path / "run"
    launch("finetune_object_detection", config, f"output={output}", NOISE)
    losses = losses_of(output)
    assert losses[-1] < losses[0]
    record = json.loads((output / "result.json").read_text())
    assert set(record["metric"]) == {"map", "map_50", "map_75"}
    table = pd.read_parquet(output / "predictions.parquet")
    assert [len(boxes) for boxes in table["predicted_boxes"]] == [3] * 17
    row_picture(1).save(tmp_path / "a.png")
    main(["detect", str(output / "model"), str(tmp_path / "a.png"), "--threshold", "0"])
    found = json.loads(capsys.readouterr().out)["objects"]
    assert [each["label"] in NAMES for each in found] == [True] * 3
    assert all(0 <= value <= 16 for each in found for value in each["box"])
    again = launch("finetune_object_detection", config, f"output={tmp_path / 'e'}", "model.config=null",
                   f"model.name_or_path={output / 'model'}", "--eval-only")  # fmt: skip
    assert f"test map {record['metric']['map']:.4f}" in again.stdout


@pytest.mark.long
@pytest.mark.parametrize("words", [[NOISE], [NOISE, PROPOSE]], ids=["anchors", "proposals"])
def test_denoising_resumes_exactly(launch, pictures, tmp_path, capsys, words):
    pytest.importorskip("pycocotools")
    config = pictures(OURS, PASTE, max_train_steps=16)
    output = tmp_path / "run"
    launch("finetune_object_detection", config, f"output={output}", *words)
    assert resumed(launch, "finetune_object_detection", config, output, *words)
    row_picture(1).save(tmp_path / "a.png")
    main(["detect", str(output / "model"), str(tmp_path / "a.png"), "--threshold", "0"])
    assert len(json.loads(capsys.readouterr().out)["objects"]) == 3


def test_stock_refuses_denoising(launch, pictures, tmp_path):
    done = launch("finetune_object_detection", pictures(DETR), f"output={tmp_path / 'x'}", NOISE, expect=2)
    assert re.search(r"objective.denoising: the queries of .* are no boxes; remove it, or start from", done.stderr)


def test_pasted_objects_need_queries_too(launch, pictures, tmp_path):
    words = f"output={tmp_path / 'x'}", "model.overrides.num_queries=1"
    done = launch("finetune_object_detection", pictures(OURS, PASTE), *words, expect=2)
    assert (
        "train: a picture has 1 objects (and data.augment.copy_paste may add 1), and the model 1 queries; set "
        "model.overrides.num_queries=2"
    ) in done.stderr


def test_proposals_need_auxiliary_losses(launch, pictures, tmp_path):
    words = f"output={tmp_path / 'x'}", PROPOSE, "objective.auxiliary_loss=false"
    done = launch("finetune_object_detection", pictures(OURS), *words, expect=2)
    assert "proposals" in done.stderr
    assert "auxiliary_loss" in done.stderr
    assert "Traceback" not in done.stderr
