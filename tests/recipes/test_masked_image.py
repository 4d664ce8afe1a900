"""Pretraining without labels: from files to a classifier that starts from it."""

import json

import pandas as pd
import pytest
from tests.recipes.pictures import VIT, write_splits
from tests.recipes.test_pictures_recipes import losses_of, resumed
from transformers import AutoConfig, AutoModelForImageClassification

from decero.tasks import MaskedImage

OURS = {name: value for name, value in VIT.items() if name != "model_type"} | {"model_type": "decero_vision"}


@pytest.fixture
def settings(tmp_path):
    """Write a run's configuration."""

    def write(model, **more):
        (tmp_path / "preset.yaml").write_text(json.dumps(model))
        steps = {"max_train_steps": 24, "global_batch_size": 8, "per_device_batch_size": 3, "save_steps": 8}
        run = {
            "output": "OUTPUT", "model": {"config": str(tmp_path / "preset.yaml")},
            "data": {"files": write_splits(tmp_path)}, "optim": {"learning_rate": 5e-3}, "tracking": {"trackers": []},
            "training": steps | {"save_total_limit": 9, "logging_steps": 1},
        }  # fmt: skip
        (tmp_path / "run.yaml").write_text(json.dumps(run | more))
        return tmp_path / "run.yaml"

    return write


def test_pretrain_resume_and_fine_tune(launch, settings, tmp_path):
    config, output = settings(OURS, objective={"mask_ratio": 0.5, "mask_patch_size": 8}), tmp_path / "run"
    launch("pretrain_masked_image", config, f"output={output}")
    record = json.loads((output / "result.json").read_text())
    table = pd.read_parquet(output / "predictions.parquet")
    assert list(table["row"]) == list(range(13))
    assert set(table["values"]) == {2 * 8 * 8 * 3}  # 2 of 4 squares
    assert record["metric"]["eval_loss"] == pytest.approx(table["distance"].sum() / table["values"].sum())
    assert record["metric"]["eval_loss"] < 0.3
    assert (output / "model" / "preprocessor_config.json").is_file()
    assert resumed(launch, "pretrain_masked_image", config, output)

    tuned = tmp_path / "tuned"
    fine = f"model={{name_or_path: {output / 'model'}}}"
    done = launch("finetune_image_classification", settings(OURS), f"output={tuned}", fine)
    assert "new, with random weights: classifier" in done.stdout + done.stderr
    assert json.loads((tuned / "result.json").read_text())["metric"]["accuracy"] > 0.9


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_stock_vits_write_the_patches_that_they_read(tmp_path, kind):
    (tmp_path / "preset.yaml").write_text(json.dumps(VIT | {"model_type": kind}))  # encoder_stride is 16
    settings = {"output": str(tmp_path / "run"), "model": {"config": str(tmp_path / "preset.yaml")}}
    settings |= {"data": {"files": write_splits(tmp_path)}, "training": {"max_train_steps": 1}}
    task = MaskedImage(MaskedImage.Config.parse(settings, "x"))
    rows = task.tokenize(task.corpus.splits["train"], "train")[""]
    model = task.build_model()
    objective = task.reported_objective(model)
    batch = objective.collate([rows[number] | {"epoch": 0, "index": number} for number in range(3)])
    assert objective.loss(model, batch).isfinite()


@pytest.mark.parametrize(
    ("kind", "told"),
    [("vit", "decoder, vit.embeddings.mask_token"), ("decero_vision", "decoder, model.mask_token")],
)
def test_it_goes_on_from_a_classifier(tmp_path, kind, told, capsys):
    """A classifier has no vector of hidden patches; it is new, as the decoder is."""
    config = AutoConfig.for_model(kind, **{name: value for name, value in VIT.items() if name != "model_type"})
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "classifier")
    settings = {"output": str(tmp_path / "run"), "model": {"name_or_path": str(tmp_path / "classifier")}}
    settings |= {"data": {"files": write_splits(tmp_path)}, "training": {"max_train_steps": 1}}
    task = MaskedImage(MaskedImage.Config.parse(settings, "x"))
    rows = task.tokenize(task.corpus.splits["train"], "train")[""]
    model = task.build_model()
    assert f"new, with random weights: {told}" in capsys.readouterr().err
    objective = task.reported_objective(model)
    batch = objective.collate([rows[number] | {"epoch": 0, "index": number} for number in range(3)])
    assert objective.loss(model, batch).isfinite()


@pytest.mark.slow
def test_two_processes_hide_the_same_patches(launch, settings, tmp_path, two_processes):
    config = settings(OURS, objective={"mask_ratio": 0.5, "mask_patch_size": 8})
    for name, launcher in (("two", two_processes), ("one", None)):
        launch("pretrain_masked_image", config, f"output={tmp_path / name}", "training.max_train_steps=4",
               launcher=launcher)  # fmt: skip
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), rel=1e-4)


@pytest.mark.parametrize(
    ("preset", "more", "said"),
    [
        (
            OURS,
            {"objective": {"mask_patch_size": 6}},
            "objective.mask_patch_size: 6 is no multiple of the model's patches",
        ),
        (OURS, {"objective": {"mask_patch_size": 16}}, "hides a picture of 16 x 16 as a whole; set 4, or null"),
    ],
)
def test_what_cannot_be_hidden_is_one_line(launch, settings, tmp_path, preset, more, said):
    done = launch("pretrain_masked_image", settings(preset, **more), f"output={tmp_path / 'run'}", expect=2)
    assert said in done.stderr
