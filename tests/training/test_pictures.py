"""Pictures go through loader, loop, evaluation and forecast: none of them reads a text's fields by name."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import ViTConfig, ViTForImageClassification

from decero.config.command_line import Call
from decero.config.run_config import RunConfig
from decero.config.sections import OptimSection, TrainingSection
from decero.data.sizes import BatchSize
from decero.errors import UserError
from decero.execution.objective import Objective
from decero.execution.optimize import pack_if_proven
from decero.planning import probe as probing
from decero.planning.forecast import forecast
from decero.training.data_loader import step_loader
from decero.training.evaluation import mean_loss
from decero.training.loop import train
from decero.training.runs import Run

PATCHES = 10  # 3 x 3 of a picture of 6 x 6 in patches of 2, and the class token


class Settings(RunConfig):
    optim: OptimSection = OptimSection()
    training: TrainingSection


@pytest.fixture
def pictures():
    """41 pictures of one channel: those of class 1 are brighter."""
    labels = np.arange(41) % 2
    pixels = np.random.default_rng(3).random((41, 1, 6, 6)) + labels[:, None, None, None]
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": labels.tolist()})


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=6, patch_size=2, num_channels=1, num_labels=2))


@pytest.fixture
def objective():
    def collate(rows):
        return {name: torch.tensor([row[name] for row in rows]) for name in ("pixel_values", "labels")}

    def loss(model, batch):
        logits = model(pixel_values=batch["pixel_values"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")

    def size(batch, scored, examples):
        return BatchSize(examples, examples, scored, examples * PATCHES, examples * PATCHES**2)

    def lengths(rows):
        return np.ones(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)

    count = lambda batch: len(batch["labels"])  # noqa: E731
    return Objective(collate, loss, count, batch_size=size, row_lengths=lengths, packable=False)


def test_a_picture_counts_as_one_row(pictures, objective):
    training = TrainingSection(max_train_steps=2, global_batch_tokens=12, per_device_tokens=5)
    loader = step_loader(Accelerator(cpu=True), pictures, objective, training, seed=1)
    micro_batches = loader.at(0)
    assert [len(micro.indices) for micro in micro_batches] == [5, 5, 2]
    assert micro_batches[0].size(objective) == BatchSize(5, 5, 5, 5 * PATCHES, 5 * PATCHES**2)


def test_a_picture_model_trains_and_is_evaluated(pictures, objective, model, tmp_path):
    accelerator = Accelerator(cpu=True)
    training = TrainingSection(max_train_steps=40, global_batch_size=20, per_device_batch_size=7, save_steps=None)
    run = Run(accelerator, training, OptimSection(learning_rate=1e-2), tmp_path, seed=2, progress=False)
    before = mean_loss(accelerator, model, pictures, objective, 8)["loss"]
    result = train(run, model, pictures, objective)
    assert mean_loss(accelerator, result.model, pictures, objective, 8)["loss"] < 0.7 * before
    assert result.tokens == sum(20 if step % 3 < 2 else 1 for step in range(40))  # epochs of 41: 20, 20 and 1


def test_a_picture_run_is_forecast(pictures, objective, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probing, "SECONDS", 0.2)
    config = Settings(output="run", training=TrainingSection(max_train_steps=9, global_batch_size=20))
    config._call = Call(dry_run=True)
    run = Run(Accelerator(cpu=True), config.training, config.optim, tmp_path, config=config)
    found = forecast(run, model, objective, pictures)
    assert found.load.places == found.load.examples * PATCHES
    assert found.step_s > 0
    assert "training rows     41 of 1.0 tokens on average" in capsys.readouterr().out


def test_pictures_are_never_packed(pictures, objective, model):
    same, line = pack_if_proven(objective, model, pictures, 128, "auto")
    assert same is objective
    assert line.startswith("packing: off")
    with pytest.raises(UserError, match=r"training\.packing"):
        pack_if_proven(objective, model, pictures, 128, "on")
