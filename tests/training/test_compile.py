"""training.compile: the same numbers from compiled layers, the same names in checkpoints, and no end of compiling."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn

from decero.data.packing import Packed
from decero.errors import UserError
from decero.models import DeceroEncoderConfig, DeceroEncoderForSequenceClassification
from decero.training.config import TrainingSection
from decero.training.economy import compile_layers, economise
from decero.training.objectives import classification

SGD = {"name": "sgd", "learning_rate": 0.5}


@pytest.fixture
def traced(monkeypatch):
    """Compiles everything but the kernels, which takes seconds instead of a minute; returns what it has counted."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


def losses(result):
    return [row["loss"] for row in result.history if "loss" in row]


def names(folder):
    with safe_open(next(folder.glob("checkpoints/step-*")) / "model.safetensors", framework="pt") as file:
        return sorted(file.keys())


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=["stored", "recomputed"])
def test_compiled_layers_train_as_the_others_and_leave_the_same_checkpoint(fit, traced, objective, tmp_path, settings):
    packed = replace(objective, collate=Packed(objective.collate, 64, full=True))
    expected = fit(tmp_path / "eager", objective=packed, optim=SGD, save_steps=6, **settings)
    compiled = fit(tmp_path / "compiled", objective=packed, optim=SGD, save_steps=6, compile=True, **settings)
    assert losses(compiled) == pytest.approx(losses(expected), abs=1e-5)
    assert names(tmp_path / "compiled") == names(tmp_path / "eager")
    assert 0 < traced["unique_graphs"] <= 4, "layers are one piece of code, and rows of any number one shape"


def test_hooks_of_an_objective_act_on_compiled_layers(traced):
    """A classifier of packed texts takes them apart behind the last layer, each batch in its own way."""
    sizes = {"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DeceroEncoderConfig(**sizes, intermediate_size=31, pad_token_id=1, num_labels=5)
    model = DeceroEncoderForSequenceClassification(config).eval()

    def batch_of(lengths):
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids = torch.where(real, torch.arange(real.numel()).view(real.shape) % 30 + 3, 1)
        return {"input_ids": ids, "attention_mask": real.long(), "labels": torch.arange(len(lengths)) % 5}

    objective = classification(lambda lengths: batch_of(lengths), "single_label_classification")
    packed = replace(objective, collate=Packed(objective.collate, 16, per_text=("labels",), full=True))
    batches = [[7, 5, 2, 11], [3, 9], [16, 1, 4, 4, 4, 8]]
    expected = [objective.loss(model, objective.collate(lengths)).item() for lengths in batches]
    compile_layers(model)
    assert [packed.loss(model, packed.collate(b)).item() for b in batches] == pytest.approx(expected, abs=1e-5)
    assert traced["unique_graphs"] > 0


def test_packed_rows_are_whole_only_for_a_compiler(rows, objective, tiny_model):
    def columns(**settings):
        training = TrainingSection(max_train_steps=1, **settings)
        chosen = economise(Accelerator(cpu=True), tiny_model(), objective, rows, 48, training, quiet=True)
        short = [row | {"epoch": 0, "index": i} for i, row in enumerate(rows.select([0, 1]))]
        return chosen.collate(short)["input_ids"].shape[1]

    assert columns(compile=True) == 128
    assert columns() < 128


def test_a_model_whose_layers_cannot_be_told_is_refused():
    with pytest.raises(UserError, match=r"training\.compile: cannot tell which are the layers of Linear"):
        compile_layers(nn.Linear(2, 2))


@pytest.mark.slow
def test_compiled_kernels_train_as_the_others(fit, objective, tmp_path):
    packed = replace(objective, collate=Packed(objective.collate, 64, full=True))
    expected = fit(tmp_path / "eager", objective=packed, optim=SGD)
    assert losses(fit(tmp_path / "compiled", objective=packed, optim=SGD, compile=True)) == pytest.approx(
        losses(expected), abs=1e-5
    )


@pytest.mark.slow
def test_a_resumed_run_compiles_anew_and_goes_on(fit, tiny_model, tmp_path):
    steps = {"save_steps": 3, "optim": {"schedule": "constant"}, "compile": True}
    whole = fit(tmp_path / "whole", model=tiny_model(0.1), **steps)
    fit(tmp_path / "cut", model=tiny_model(0.1), max_train_steps=3, **steps)
    assert losses(fit(tmp_path / "cut", model=tiny_model(0.1), resume=True, **steps)) == losses(whole)
