"""Diffusion: from files to a model that draws, resumed exactly, on one process and two."""

import json
import re

import pandas as pd
import pytest
import torch
from tests.recipes.pictures import DIT, NAMES, write_splits
from tests.recipes.test_pictures_recipes import losses_of, resumed
from transformers import AutoModel

from decero.inference.diffusion_sampling import sample_pictures

RECIPE = "pretrain_image_diffusion"


@pytest.fixture
def settings(tmp_path):
    """Write a run's configuration."""

    def write(**more):
        (tmp_path / "preset.yaml").write_text(json.dumps(DIT))
        steps = {"max_train_steps": 24, "global_batch_size": 8, "per_device_batch_size": 3, "save_steps": 8}
        run = {
            "output": "OUTPUT", "model": {"config": str(tmp_path / "preset.yaml")},
            "data": {"files": write_splits(tmp_path)}, "optim": {"learning_rate": 1e-2}, "tracking": {"trackers": []},
            "training": steps | {"save_total_limit": 9, "logging_steps": 1},
        }  # fmt: skip
        (tmp_path / "run.yaml").write_text(json.dumps(run | more))
        return tmp_path / "run.yaml"

    return write


def test_train_resume_and_draw(launch, settings, tmp_path):
    config, output = settings(), tmp_path / "run"
    launch(RECIPE, config, f"output={output}")
    record = json.loads((output / "result.json").read_text())
    table = pd.read_parquet(output / "predictions.parquet")
    assert list(table["row"]) == list(range(13))
    assert set(table["values"]) == {16 * 16 * 3}
    assert record["metric"]["eval_loss"] == pytest.approx(table["error"].sum() / table["values"].sum())
    assert record["metric"]["eval_loss"] == pytest.approx(0.769, abs=0.01)
    losses = losses_of(output)
    assert losses[0] == pytest.approx(1.14, abs=0.06)  # of a velocity of zero: 1 for the noise, and the pictures
    assert resumed(launch, RECIPE, config, output)

    model = AutoModel.from_pretrained(output / "model")
    assert list(model.config.id2label.values()) == list(NAMES)
    drawn = sample_pictures(model, torch.tensor([0, 1]), steps=4, seed=1)
    assert drawn.shape == (2, 16, 16, 3)
    assert 60 < float(drawn.float().mean()) < 190
    again = launch(RECIPE, config, f"output={tmp_path / 'e'}", f"model={{name_or_path: {output / 'model'}}}",
                   "--eval-only")  # fmt: skip
    assert f"eval_loss {record['metric']['eval_loss']:.4f}" in again.stdout


@pytest.mark.slow
def test_two_processes_train_one_diffusion(launch, settings, tmp_path, two_processes):
    config, words = settings(), ("training.max_train_steps=4",)
    launch(RECIPE, config, f"output={tmp_path / 'two'}", *words, launcher=two_processes)
    launch(RECIPE, config, f"output={tmp_path / 'one'}", *words)
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), rel=1e-4)


def test_a_forecast_of_diffusion_counts_pictures(launch, settings, tmp_path):
    done = launch(RECIPE, settings(), f"output={tmp_path / 'x'}", "--dry-run")
    assert "training pictures 41" in done.stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.image_size=18"], "image_size 18 is not a multiple of patch_size 4; change one"),
        (["data.label_column=kind"], "no column 'kind'"),
        (["objective.class_dropout=1"], "objective.class_dropout is 1, but input should be less than 1"),
        (["model.config=configs/model/vit_tiny.yaml"], "vit_tiny.yaml is a decero_vision, which draws no pictures"),
        (["model.config=configs/model/stock_bert_tiny.yaml"], "is a bert, which draws no pictures"),
    ],
)
def test_what_cannot_be_drawn_from_is_one_line(launch, settings, tmp_path, words, line):
    done = launch(RECIPE, settings(), f"output={tmp_path / 'x'}", *words, expect=2)
    assert re.search(line, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "x").exists()


def test_other_classes_than_a_checkpoint_draws_are_one_line(launch, settings, tmp_path):
    config = settings()
    launch(RECIPE, config, f"output={tmp_path / 'run'}", "training.max_train_steps=1", "training.save_steps=null")
    frame = pd.read_parquet(tmp_path / "train.parquet")
    frame["label"] = ["cat", "dog"] * 20 + ["cat"]
    frame.to_parquet(tmp_path / "train.parquet")
    for split in ("validation", "test"):
        frame.to_parquet(tmp_path / f"{split}.parquet")
    model = f"model={{name_or_path: {tmp_path / 'run' / 'model'}}}"
    done = launch(RECIPE, config, f"output={tmp_path / 'x'}", model, expect=2)
    assert "it draws dark, light, and the data has cat, dog; give pictures of its classes" in done.stderr
