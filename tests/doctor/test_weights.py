"""Models that cannot learn, dead or exploding layers, and wrong step sizes are found."""

import json

import pytest
import torch
from tests.recipes.pictures import OURS
from transformers import AutoTokenizer

from decero.doctor import weights
from decero.doctor.examination import open_run

pytestmark = pytest.mark.long


def by_check(found):
    return {f.check: f for f in found}


@pytest.mark.parametrize(
    ("optim", "what"),
    [
        ({"learning_rate": 1e-9}, "the model learns nothing"),
        ({"learning_rate": 300.0, "name": "sgd", "max_grad_norm": None, "num_warmup_steps": 0}, "the loss diverges"),
    ],
)
def test_a_learning_rate_that_cannot_be_right_is_found(found, optim, what):
    said = by_check(found(weights.overfit, "pretrain_mlm", optim=optim))
    assert said["overfit"].severity == "bad"
    assert what in said["overfit"].what
    assert f"optim.learning_rate {optim['learning_rate']:g}" in said["overfit"].mend
    assert said["first loss"].severity == "ok"


def test_a_model_that_cannot_see_the_labels_cause_is_found(found, make):
    rows = [row | {"note": "the market rose"} for row in make.examples(40)]
    splits = {"train": rows, "validation": rows, "test": rows}
    said = by_check(found(weights.overfit, "finetune_classification", rows=splits, data={"text_column": "note"}))
    assert said["overfit"].severity == "bad"
    assert "the loss of label frequencies alone" in said["overfit"].what


def test_a_slow_run_gives_only_a_note(found):
    said = by_check(found(weights.overfit, "pretrain_causal_lm", optim={"learning_rate": 1e-3}))
    assert said["overfit"].severity == "note"
    assert "slow, but still falling" in said["overfit"].what


def test_initial_weights_that_are_too_large_are_found_at_step_0(found):
    said = by_check(found(weights.overfit, "pretrain_causal_lm", model={"overrides": {"initializer_range": 2.0}}))
    assert said["first loss"].severity == "warn"
    assert "uniform guessing gives 5.680" in said["first loss"].what  # ln 293
    assert "initializer_range" in said["first loss"].mend


def test_the_batch_is_always_the_first_of_the_run(write):
    batches = [open_run(str(write("pretrain_mlm")), "pretrain_mlm").batch(n) for n in (0, 0, 1)]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert batches[0]["input_ids"].shape[0] == 8
    assert not torch.equal(batches[0]["attention_mask"].sum(1), batches[2]["attention_mask"].sum(1))


@pytest.fixture
def trained(write, house):
    """The folder of a run whose model was changed before it was saved."""

    def trained(change, **how):
        folder = write("pretrain_mlm", **how)
        model = open_run(str(folder), "pretrain_mlm").build()
        with torch.no_grad():
            change(dict(model.named_parameters()))
        model.save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(house / "wordpiece").save_pretrained(folder / "model")
        return list(weights.layers(open_run(str(folder), "pretrain_mlm")))

    return trained


def last(parameters, name):
    return next(p for key, p in parameters.items() if key.endswith(f"layers.2.{name}"))


def nan(parameters):
    last(parameters, "mlp.up_proj.weight").fill_(float("nan"))


def explode(parameters):
    last(parameters, "mlp.down_proj.weight").mul_(1e5)


def in_the_middle(parameters):
    next(p for key, p in parameters.items() if key.endswith("layers.1.mlp.down_proj.weight")).mul_(1e5)


def idle(parameters):
    for name in ("mlp.down_proj.weight", "mlp.down_proj.bias", "self_attn.o_proj.weight", "self_attn.o_proj.bias"):
        last(parameters, name).zero_()


@pytest.mark.parametrize(
    ("change", "layer", "severity", "what"),
    [
        (nan, "layers.2", "bad", "the output is not finite"),
        (explode, "layers.2", "warn", "times that of other layers"),
        (in_the_middle, "layers.1", "warn", "times that of other layers"),
        (idle, "layers.2", "bad", "does not change its input"),
    ],
)
def test_a_dead_or_exploding_layer_is_found(trained, change, layer, severity, what):
    found = trained(change)
    said = [f for f in found if f.where.endswith(layer) and what in f.what]
    assert said, [f.line() for f in found]
    assert said[0].severity == severity
    assert "/model, " in said[0].where


def test_healthy_trained_layers_give_no_finding(trained):
    assert [f.severity for f in trained(lambda parameters: None)] == ["ok"]


@pytest.mark.parametrize(("bias", "severity"), [(-100.0, "bad"), (0.0, "ok")])
def test_units_that_never_fire_are_counted(trained, bias, severity):
    def shift(parameters):
        last(parameters, "mlp.up_proj.bias").fill_(bias)

    found = trained(shift, model={"overrides": {"hidden_act": "relu"}})
    said = [f for f in found if f.where.endswith("layers.2.mlp.act") or f.severity == "ok"]
    assert [f.severity for f in said] == [severity], [f.line() for f in found]
    assert ("100.0 % of the units never fire" in said[0].what) == (severity == "bad")


@pytest.mark.parametrize("more", [{}, {"anchor_prior": True, "box_bias": True, "proposals": True}], ids=str)
def test_corrections_that_start_at_zero_are_healthy(write, more, tmp_path):
    """What is behind a matrix of zeros has no gradient at first; a detector begins like this on purpose."""
    (tmp_path / "ours.yaml").write_text(json.dumps(OURS | {"queries": "anchors"} | more))
    folder = write("finetune_object_detection", model={"config": str(tmp_path / "ours.yaml")})
    found = list(weights.layers(open_run(str(folder), "finetune_object_detection")))
    assert not [f.line() for f in found if f.severity == "bad"]


@pytest.mark.parametrize(
    ("optim", "severity", "mend"),
    [
        ({"learning_rate": 1.0, "num_warmup_steps": 0}, "bad", "lower optim.learning_rate 1 "),
        ({"learning_rate": 3e-2, "num_warmup_steps": 0}, "warn", "raise optim.num_warmup_steps"),
        ({"learning_rate": 1e-7}, "warn", "raise optim.learning_rate 1e-07"),
        ({"learning_rate": 3e-3, "num_warmup_steps": 50}, "ok", ""),
        ({"learning_rate": 1e-4, "num_warmup_steps": 100}, "ok", ""),  # little at first, and not at the peak
    ],
)
def test_steps_that_are_too_long_or_too_short_are_found(found, optim, severity, mend):
    said = found(weights.updates, "pretrain_mlm", optim=optim)
    assert [f.severity for f in said] == [severity], [f.line() for f in said]
    assert mend in said[0].mend
