"""Drawings are measured from files, as a user runs it: right numbers, pictures, one line for each mistake."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.recipes.pictures import DIT, NAMES, SIZES, VIT, row, write_splits
from transformers import AutoConfig, AutoModel, ViTForImageClassification, ViTImageProcessorPil

from decero.evaluation.drawing_measures import frechet_distance
from decero.inference.diffusion_sampling import sample_pictures

RECIPE = "evaluate_drawings"


@pytest.fixture
def settings(tmp_path):
    """Write a model that draws, a classifier with its classes in another order, pictures, and the settings."""
    torch.manual_seed(0)
    facts = {key: value for key, value in DIT.items() if key != "model_type"}
    drawer = AutoModel.from_config(
        AutoConfig.for_model("decero_diffusion", **facts, id2label=dict(enumerate(NAMES)))
    )  # fmt: skip
    for weight in drawer.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    drawer.save_pretrained(tmp_path / "drawer")
    turned = dict(enumerate(reversed(NAMES)))
    facts = {key: value for key, value in VIT.items() if key != "model_type"}
    judge = ViTForImageClassification(AutoConfig.for_model("vit", **facts, id2label=turned))
    judge.save_pretrained(tmp_path / "judge")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "judge")
    run = {"output": str(tmp_path / "out"), "model": str(tmp_path / "drawer"), "classifier": str(tmp_path / "judge"),
           "data": {"files": write_splits(tmp_path)}, "pictures_per_class": 3, "repeats": 2, "steps": 2, "seed": 5,
           "tracking": {"trackers": []}}  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    return tmp_path / "run.yaml"


def classified(folder, pixels):
    """Classes and features of a ViT, by hand."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    values = torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        hidden = model.vit(values).last_hidden_state[:, 0]
        return model.classifier(hidden).argmax(dim=-1).numpy(), hidden.numpy()


def test_numbers_are_those_of_a_computation_by_hand(launch, settings, tmp_path):
    printed = launch(RECIPE, settings, "per_device_eval_batch_size=4").stdout
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [each["seed"] for each in record["by_seed"]] == [5, 6]
    wanted = torch.tensor([0, 0, 0, 1, 1, 1])
    drawn = sample_pictures(AutoModel.from_pretrained(tmp_path / "drawer"), wanted, steps=2, guidance=2.0, seed=5)
    found, features = classified(tmp_path / "judge", drawn.numpy())
    accuracy = float((1 - found == wanted.numpy()).mean())  # the classifier has its classes the other way round
    first = record["by_seed"][0]
    assert first["accuracy"] == pytest.approx(accuracy)
    assert first["accuracy"] == pytest.approx(np.mean(list(first["accuracy_by_class"].values())))
    assert sum(first["shares_without_class"].values()) == pytest.approx(1)
    assert record["metric"]["accuracy"] == pytest.approx(np.mean([each["accuracy"] for each in record["by_seed"]]))
    rows = [row(number) for number in range(SIZES["train"] + SIZES["validation"], sum(SIZES.values()))]
    tested = np.stack([np.asarray(Image.open(io.BytesIO(each["image"]))) for each in rows])
    said, test_features = classified(tmp_path / "judge", tested)
    labels = np.array([NAMES.index(each["label"]) for each in rows])
    assert record["classifier_accuracy_on_test"] == pytest.approx((1 - said == labels).mean())
    some = rows_by_lot(seed=5, sizes=(SIZES["train"], SIZES["test"]), count=6)
    assert first["frechet"] == pytest.approx(frechet_distance(features, test_features[some]), rel=1e-3)
    assert first["nearest_train_of_test"] > 0
    assert Image.open(tmp_path / "out" / "samples.png").size[1] == 2 * 64 + 2
    assert Image.open(tmp_path / "out" / "nearest.png").size[1] == 2 * 64 + 2
    assert "on real test pictures the classifier is right" in printed
    assert "is finished" in launch(RECIPE, settings, "per_device_eval_batch_size=4", "--resume").stdout


def rows_by_lot(seed, sizes, count):
    """The rows of test that are drawn by lot: train comes first."""
    rng = np.random.default_rng(seed)
    rng.permutation(sizes[0])
    return rng.permutation(sizes[1])[:count]


@pytest.mark.parametrize(("words", "message"), [
    (["data.max_rows=1"], "the train split has one picture, too few for a distribution; give at least 2"),
    (["data.files.test=null"], "no test split"),
    (["model=JUDGE"], "this vit model draws no pictures"),
    (["classifier=DRAWER"], "this decero_diffusion model"),
    (["steps=0"], "steps"),
    (["data.label_column=lable"], "lable"),
])  # fmt: skip
def test_a_mistake_gets_one_line(launch, settings, tmp_path, words, message):
    words = [
        each.replace("JUDGE", str(tmp_path / "judge")).replace("DRAWER", str(tmp_path / "drawer")) for each in words
    ]
    error = launch(RECIPE, settings, *words, expect=2).stderr
    assert message in error
    assert "Traceback" not in error
