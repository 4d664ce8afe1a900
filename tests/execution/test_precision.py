"""`training.mixed_precision: auto` is bf16 where the device of the run computes it itself."""

import pytest
import torch

from decero.config.devices import DEVICES
from decero.config.sections import TrainingSection
from decero.execution import precision
from decero.execution.precision import settle_precision


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no"), (None, "no")])
def test_auto_is_bf16_where_the_cpu_computes_it(native, expected, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: native)
    training = TrainingSection(max_train_steps=1, mixed_precision="auto")
    settle_precision(training)
    assert training.mixed_precision == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_follows_the_gpu_where_there_is_one(native, expected, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: not native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision.best_precision() == expected


def test_auto_of_a_forecast_is_that_of_its_device(monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    training = TrainingSection(max_train_steps=1, mixed_precision="auto")
    settle_precision(training, DEVICES["h100"])
    assert training.mixed_precision == "bf16"
    training = TrainingSection(max_train_steps=1, mixed_precision="auto")
    settle_precision(training, DEVICES["t4"])
    assert training.mixed_precision == "no", "its tensor cores have no bf16"


def test_a_resumed_run_keeps_the_precision_that_it_chose(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "best_precision", lambda: "no")
    recorded = tmp_path / "config.yaml"
    for training, expected in (("{mixed_precision: bf16}", "bf16"), ("{mixed_precision: auto}", "no"), ("null", "no")):
        recorded.write_text(f"training: {training}\n")
        resumed = TrainingSection(max_train_steps=1, mixed_precision="auto")
        settle_precision(resumed, recorded=recorded)
        assert resumed.mixed_precision == expected


@pytest.mark.parametrize("given", ["no", "bf16"])
def test_a_precision_that_is_set_stays(given, monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: given == "no")
    training = TrainingSection(max_train_steps=1, mixed_precision=given)
    settle_precision(training)
    assert training.mixed_precision == given
