"""The loop: exact gradients, exact resume, schedules in optimizer steps, and a stop before a bad update."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, XLNetConfig

from decero.data.order import Rows, Schedule
from decero.errors import UserError
from decero.training.config import OptimSection, TrainingSection
from decero.training.gradient import freeze_unreached
from decero.training.loop import train
from decero.training.objectives import classification


def losses(result):
    return [row["loss"] for row in result.history if "loss" in row]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_the_gradient_of_unequal_micro_batches_is_that_of_the_whole_batch(rows, objective, tiny_model, tmp_path, size):
    """Rows of a corpus differ in scored tokens; a mean of means would weigh them wrongly."""
    seen = {}

    def after_one_step(per_device):
        model = tiny_model()
        train(
            Accelerator(cpu=True), model, rows, objective,
            OptimSection(name="sgd", learning_rate=1.0, weight_decay=0.0, max_grad_norm=None, schedule="constant"),
            TrainingSection(max_train_steps=1, global_batch_size=12, per_device_batch_size=per_device),
            output=tmp_path / str(per_device), seed=4, progress=False,
        )  # fmt: skip
        start = weights(tiny_model())
        return {name: start[name] - value for name, value in weights(model).items()}  # rate 1: the gradient itself

    places = next(Schedule(len(rows), 12, size, seed=4).from_step(0, 1))
    counts = {objective.count(objective.collate([row])) for row in Rows(rows).__getitems__(places)}
    assert size == 1 or len(counts) > 1
    whole, cut = after_one_step(12), after_one_step(size)
    for name, gradient in whole.items():
        seen[name] = float((gradient - cut[name]).abs().max())
    assert max(seen.values()) <= 1e-6, seen


def test_the_partial_last_window_of_an_epoch_counts_its_own_items(rows, objective, tiny_model, fit):
    """61 rows in batches of 12: the sixth step has fewer. Its loss is the mean over just those."""
    last = len(rows) % 12
    assert last
    steps = -(-len(rows) // 12)
    result = fit(max_train_steps=steps, optim={"name": "sgd", "learning_rate": 1e-12, "schedule": "constant"})
    places = next(Schedule(len(rows), 12, 12, seed=4).from_step(steps - 1, steps))
    batch = objective.collate(Rows(rows).__getitems__(places))
    with torch.no_grad():
        expected = float(objective.loss(tiny_model(), batch)) / objective.count(batch)
    assert losses(result)[-1] == pytest.approx(expected, rel=1e-5)


def test_a_tiny_run_ends_where_it_always_ends(fit):
    """Pinned: a change of order, masks, initialisation, schedule or optimizer moves these numbers."""
    assert losses(fit()) == pytest.approx(PINNED, abs=2e-4)


PINNED = [4.62081, 4.50900, 4.38171, 4.28729, 4.11678, 3.94637]


def test_a_run_that_stopped_and_resumed_is_the_same_run(fit, tiny_model, tmp_path):
    """Dropout on: the random state must come back too."""
    whole = fit(tmp_path / "whole", model=tiny_model(0.1), max_train_steps=9, save_steps=4)
    cut = {"max_train_steps": 9, "save_steps": 4, "output": tmp_path / "cut"}
    with pytest.raises(StopAt):
        fit(model=tiny_model(0.1), eval_strategy="steps", eval_steps=5, evaluate=StopAt(5), **cut)
    resumed = fit(model=tiny_model(0.1), resume=True, **cut)
    assert losses(resumed) == losses(whole)
    assert [r["tokens"] for r in resumed.history] == [r["tokens"] for r in whole.history]
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


class StopAt(BaseException):
    """Stands for a kill: raised where the loop evaluates."""

    def __init__(self, step):
        self.step = step

    def __call__(self, model):
        raise self


def test_the_learning_rate_follows_optimizer_steps(fit):
    for schedule, expected in {
        "linear": [0, 0.5, 1, 0.75, 0.5, 0.25],
        "constant": [0, 0.5, 1, 1, 1, 1],
        "cosine": [0, 0.5, 1, *((1 + math.cos(math.pi * i / 4)) / 2 for i in (1, 2, 3))],
    }.items():
        result = fit(optim={"learning_rate": 1.0e-3, "schedule": schedule, "num_warmup_steps": 2})
        rates = [row["learning_rate"] for row in result.history]
        assert rates == pytest.approx([1e-3 * e for e in expected]), schedule
    inverse = fit(optim={"learning_rate": 1e-3, "schedule": "inverse_sqrt", "num_warmup_steps": 2})
    assert inverse.history[5]["learning_rate"] == pytest.approx(1e-3 * (2 / 5) ** 0.5)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adafactor"])
def test_every_optimizer_lowers_the_loss(fit, name):
    rate = {"sgd": 0.5, "rmsprop": 3e-3, "adafactor": 0.2}.get(name, 1e-2)
    result = fit(max_train_steps=25, optim={"name": name, "learning_rate": rate})
    assert sum(losses(result)[-3:]) < sum(losses(result)[:3]) - 0.5


def test_a_loss_that_is_no_number_stops_before_the_update_and_names_layer_and_examples(fit, tiny_model):
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.bias.data[3] = float("nan")
    before = weights(model)
    with pytest.raises(UserError) as stopped:
        fit(model=model)
    assert "step 1: the loss is not finite on examples" in str(stopped.value)
    assert "first bad output: model.layers.1.mlp.down_proj" in str(stopped.value)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)


def test_a_gradient_that_is_no_number_stops_before_the_update_and_names_its_parameter(fit, tiny_model):
    model = tiny_model()
    before = weights(model)
    model.model.layers[1].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("inf"))
    line = r"step 1: the gradient of model\.layers\.1\.mlp\.up_proj\.weight is not finite on examples \d+, "
    with pytest.raises(UserError, match=line):
        fit(model=model)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_an_evaluation_that_is_no_number_is_never_the_best(fit):
    scores = iter([0.5, float("nan"), 0.4])
    often = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_accuracy"}
    result = fit(evaluate=lambda model: {"accuracy": next(scores)}, **often)
    assert result.best["step"] == 2


def test_the_best_checkpoint_is_kept_and_becomes_the_model(fit, tmp_path):
    scores, kept = iter([0.5, 0.9, 0.7]), []

    def evaluate(model):
        kept.append(weights(model))
        return {"accuracy": next(scores)}

    result = fit(
        eval_strategy="steps", eval_steps=2, evaluate=evaluate, metric_for_best_model="eval_accuracy", save_steps=2
    )
    assert result.best["step"] == 4
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    for name, value in weights(result.model).items():
        assert torch.equal(value, kept[1][name])


def test_lower_is_better_for_a_loss(fit):
    scores = iter([0.5, 0.9, 0.7])
    result = fit(
        eval_strategy="steps",
        eval_steps=2,
        evaluate=lambda m: {"loss": next(scores)},
        metric_for_best_model="eval_loss",
    )
    assert result.best["step"] == 2


def test_a_metric_for_the_best_model_that_nobody_measures_is_named(fit):
    with pytest.raises(UserError, match="eval_f1 is not among eval_loss"):
        fit(eval_strategy="epoch", evaluate=lambda m: {"loss": 1.0}, metric_for_best_model="eval_f1")


def test_metrics_jsonl_holds_a_line_a_step(fit, tmp_path):
    result = fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s"}


def test_workers_collate_the_same_batches(fit, tmp_path):
    assert losses(fit(tmp_path / "two", dataloader_num_workers=2)) == losses(fit(tmp_path / "none"))


def test_gradient_checkpointing_changes_no_number(fit, tmp_path):
    assert losses(fit(tmp_path / "a", gradient_checkpointing=True)) == pytest.approx(
        losses(fit(tmp_path / "b")), abs=1e-5
    )


def test_bf16_trains_close_to_fp32(fit, tmp_path):
    assert losses(fit(tmp_path / "a", mixed_precision="bf16")) == pytest.approx(losses(fit(tmp_path / "b")), abs=0.05)


def test_parameters_that_an_objective_never_reaches_are_frozen(tokenizer):
    config = XLNetConfig(vocab_size=101, d_model=22, n_layer=1, n_head=2, d_inner=31, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)

    def collate(rows):
        return {"input_ids": torch.tensor([r["ids"] for r in rows]), "labels": torch.tensor([0] * len(rows))}

    objective = classification(collate, "single_label_classification")
    state = torch.get_rng_state()
    frozen = freeze_unreached(model, objective, {"ids": [5, 6, 7]})
    assert "transformer.mask_emb" in frozen
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
