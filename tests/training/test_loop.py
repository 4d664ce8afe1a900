"""The loop: exact gradients, exact resuming, schedules in optimizer steps, no bad updates."""

import itertools
import json
import math
import os
import select
import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, XLNetConfig

from decero.config.optimizer_arguments import OptimizerName
from decero.config.sections import OptimSection, TrainingSection
from decero.data.order import RowIndex, Rows, Schedule
from decero.data.packing import Packed
from decero.data.tokenization import count_tokens, token_lengths
from decero.errors import UserError
from decero.execution.objective import classification
from decero.training.data_loader import prefetch
from decero.training.gradient import freeze_unreached
from decero.training.loop import train
from decero.training.runs import Run


def losses(result):
    return [row["loss"] for row in result.history if "loss" in row]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def step_of(rows, step):
    """Return the rows of a step of 12 examples."""
    epoch, examples = next(Schedule(np.ones(len(rows), dtype=int), 12, seed=4).from_step(step, step + 1))
    return Rows(rows).__getitems__([RowIndex(epoch, int(row)) for row in examples])


@pytest.fixture
def gradient_of(rows, tiny_model, tmp_path):
    """Return a function that computes the gradient of the first step with training settings."""

    def one_step(objective, **training):
        model = tiny_model()
        run = Run(
            Accelerator(cpu=True), TrainingSection(max_train_steps=1, **training),
            OptimSection(name="sgd", learning_rate=1.0, weight_decay=0.0, max_grad_norm=None, schedule="constant"),
            tmp_path, seed=4, progress=False,
        )  # fmt: skip
        train(run, model, rows, objective)
        start = weights(tiny_model())
        # The learning rate is 1, so the update is the gradient.
        return {name: start[name] - value for name, value in weights(model).items()}

    return one_step


def assert_same(gradient, expected):
    seen = {name: float((gradient[name] - value).abs().max()) for name, value in expected.items()}
    assert max(seen.values()) <= 1e-6, seen


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_unequal_micro_batches_give_the_full_batch_gradient(rows, objective, gradient_of, size):
    """Rows differ in scored tokens, so a mean of means would be wrong."""
    counts = {objective.count(objective.collate([row])) for row in step_of(rows, 0)[:size]}
    assert size == 1 or len(counts) > 1
    whole = gradient_of(objective, global_batch_size=12, per_device_batch_size=12)
    assert_same(gradient_of(objective, global_batch_size=12, per_device_batch_size=size), whole)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [50, 70, 90])
def test_token_limited_micro_batches_give_the_full_gradient(rows, objective, gradient_of, tokens, packed):
    """Padding counts; packed rows have none. Both layouts read the same twelve examples."""
    seen = []

    def watch(rows):
        batch = objective.collate(rows)
        real = batch["attention_mask"]
        seen.append((int(real.sum()) if packed else real.numel(), len(rows)))
        return batch

    cut = replace(objective, collate=Packed(watch, 64) if packed else watch)
    whole = gradient_of(objective, global_batch_size=12, per_device_batch_size="auto")
    assert_same(gradient_of(cut, global_batch_size=12, per_device_tokens=tokens), whole)
    micros = seen[1:]  # the first call searches for unused parameters
    assert sum(examples for _, examples in micros) == 12
    assert all(size <= tokens or examples == 1 for size, examples in micros)
    assert 1 < len(micros) < 12


def test_the_short_last_step_of_an_epoch_averages_its_own_items(rows, objective, tiny_model, fit):
    """61 rows in batches of 12: the sixth step has one row, and its loss is the mean over that row."""
    last = len(rows) % 12
    assert last
    steps = -(-len(rows) // 12)
    result = fit(max_train_steps=steps, optim={"name": "sgd", "learning_rate": 1e-12, "schedule": "constant"})
    batch = objective.collate(step_of(rows, steps - 1))
    with torch.no_grad():
        expected = float(objective.loss(tiny_model(), batch)) / objective.count(batch)
    assert losses(result)[-1] == pytest.approx(expected, rel=1e-5)


def test_the_losses_of_a_tiny_run_are_pinned(fit):
    """Changes of order, masks, initialisation, schedule or optimizer change these numbers."""
    assert losses(fit()) == pytest.approx(PINNED, abs=2e-4)


TOKENS = {
    "global_batch_size": None, "global_batch_tokens": 150, "per_device_batch_size": None, "per_device_tokens": 60
}  # fmt: skip
PINNED = [4.62081, 4.50900, 4.38171, 4.28729, 4.11678, 3.94637]


@pytest.mark.long
@pytest.mark.parametrize("name", ["momentum", "adafactor", "muon", "schedule_free_adamw"])
def test_every_optimizer_resumes_to_the_bit(fit, tiny_model, tmp_path, name):
    """With an evaluation and a checkpoint that the uninterrupted run does not have, and a best checkpoint."""
    steps = {"max_train_steps": 7, "metric_for_best_model": "eval_loss", "optim": {"name": name}}
    scores = {2: 3.0, 4: 2.0, 6: 9.0, 7: 9.0}
    seen = {2: [], 4: [], 6: [], 7: []}

    def evaluate(step, stop=None):
        def scored(model):
            done = min(next(step), 7)
            seen[done].append(weights(model))
            if done == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"loss": scores[done]}

        return scored

    often = steps | {"eval_strategy": "steps", "eval_steps": 2}
    whole = fit(tmp_path / "whole", model=tiny_model(0.1), evaluate=evaluate(itertools.count(2, 2)), **often)
    cut = often | {"output": tmp_path / "cut"}
    with pytest.raises(SystemExit):
        fit(model=tiny_model(0.1), evaluate=evaluate(itertools.count(2, 2), stop=6), **cut)
    resumed = fit(model=tiny_model(0.1), resume=True, evaluate=evaluate(iter([7])), **cut)
    assert losses(resumed) == losses(whole)
    for one, other in seen.values():
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name
        assert torch.equal(value, seen[4][0][name]), name  # the best, as it was evaluated


@pytest.mark.parametrize(
    ("budgets", "fields"),
    [({}, {}), (TOKENS, {}), ({}, {"mixer_type": "lstm", "position_embedding_type": "none"})],
    ids=["examples", "tokens", "lstm"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(fit, tiny_model, tmp_path, budgets, fields):
    """With dropout, so the random state must be restored, too."""
    steps = {"max_train_steps": 9, "save_steps": 4} | budgets
    whole = fit(tmp_path / "whole", model=tiny_model(0.1, **fields), **steps)
    cut = steps | {"output": tmp_path / "cut"}
    with pytest.raises(StopAt):
        fit(model=tiny_model(0.1, **fields), eval_strategy="steps", eval_steps=5, evaluate=StopAt(5), **cut)
    resumed = fit(model=tiny_model(0.1, **fields), resume=True, **cut)
    assert losses(resumed) == losses(whole)
    assert [r["tokens"] for r in resumed.history] == [r["tokens"] for r in whole.history]
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


class StopAt(BaseException):
    """Simulate a kill: raised where the loop evaluates."""

    def __init__(self, step):
        self.step = step

    def __call__(self, model):
        raise self


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("save_steps", [4, None])
def test_a_signal_stops_after_a_step_and_resuming_is_exact(fit, tiny_model, tmp_path, capsys, number, code, save_steps):
    """Also without `save_steps`: a preempted run must not lose its work."""
    steps = {"max_train_steps": 9, "save_steps": save_steps}
    whole = fit(tmp_path / "whole", model=tiny_model(0.1), **steps)
    before = signal.getsignal(number)
    cut = steps | {"output": tmp_path / "cut", "eval_strategy": "steps", "eval_steps": 5}
    with pytest.raises(SystemExit) as ended:
        fit(model=tiny_model(0.1), evaluate=lambda model: os.kill(os.getpid(), number) or {"loss": 1.0}, **cut)
    assert ended.value.code == code
    assert signal.getsignal(number) == before
    assert (
        f"stopped by {number.name} after step 5 of 9; checkpoint saved, continue with --resume"
        in capsys.readouterr().out
    )
    resumed = fit(model=tiny_model(0.1), resume=True, **(cut | {"eval_strategy": "no"}))
    assert losses(resumed) == losses(whole)
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


def test_a_second_ctrl_c_stops_at_once(fit, tmp_path):
    def twice(model):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0}

    with pytest.raises(KeyboardInterrupt):
        fit(eval_strategy="steps", eval_steps=1, evaluate=twice)


def test_resuming_skips_an_incomplete_checkpoint(fit, tiny_model, tmp_path, capsys):
    steps = {"max_train_steps": 9, "save_steps": 2, "save_total_limit": 2}
    whole = fit(tmp_path / "whole", model=tiny_model(0.1), **steps)
    cut = steps | {"output": tmp_path / "cut"}
    with pytest.raises(StopAt):
        fit(model=tiny_model(0.1), eval_strategy="steps", eval_steps=5, evaluate=StopAt(5), **cut)
    incomplete = tmp_path / "cut" / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    incomplete.write_bytes(incomplete.read_bytes()[:100])
    resumed = fit(model=tiny_model(0.1), resume=True, **cut)
    printed = capsys.readouterr().out
    assert "step-00000004: skipped: optimizer.safetensors is incomplete" in printed
    assert "at step 2 of 9" in printed
    assert losses(resumed) == losses(whole)
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


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


@pytest.mark.long
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_lowers_the_loss(fit, name):
    rate = {"sgd": 0.5, "momentum": 0.1, "rmsprop": 3e-3, "adafactor": 0.2}.get(name, 1e-2)
    result = fit(max_train_steps=25, optim={"name": name, "learning_rate": rate})
    assert sum(losses(result)[-3:]) < sum(losses(result)[:3]) - 0.5


def test_a_loss_that_is_not_finite_stops_before_the_update(fit, tiny_model):
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.bias.data[3] = float("nan")
    before = weights(model)
    with pytest.raises(UserError) as stopped:
        fit(model=model)
    assert "step 1: the loss is not finite on examples" in str(stopped.value)
    assert "first bad output: model.layers.1.mlp.down_proj" in str(stopped.value)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stops_before_the_update(fit, tiny_model):
    model = tiny_model()
    before = weights(model)
    model.model.layers[1].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("inf"))
    line = r"step 1: the gradient of model\.layers\.1\.mlp\.up_proj\.weight is not finite on examples \d+, "
    with pytest.raises(UserError, match=line):
        fit(model=model)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_nan_metric_is_never_the_best(fit):
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


def test_an_unknown_metric_for_the_best_model_is_refused(fit):
    with pytest.raises(UserError, match=r"unknown metric eval_f1.*; use one of eval_loss"):
        fit(eval_strategy="epoch", evaluate=lambda m: {"loss": 1.0}, metric_for_best_model="eval_f1")


def test_the_metric_is_known_before_the_first_step(fit, rows, tmp_path):
    """Two rows are evaluated, all of them before a name is refused; `eval_` may be left out."""
    read = []

    def evaluate(model, rows=rows):
        read.append(len(rows))
        return {"loss": 1.0} if len(rows) == 2 else {"loss": 1.0, "far_bleu": 2.0}

    with pytest.raises(UserError, match=r"unknown metric eval_los; use one of eval_loss"):
        fit(tmp_path / "a", eval_strategy="epoch", evaluate=evaluate, metric_for_best_model="eval_los")
    assert read == [2, len(rows)]
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    best = fit(tmp_path / "b", eval_strategy="epoch", evaluate=evaluate, metric_for_best_model="far_bleu").best
    assert best["eval_far_bleu"] == 2.0


def test_metrics_jsonl_has_one_line_per_step(fit, tmp_path):
    result = fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "data_wait"
    }  # fmt: skip


def test_data_wait_is_the_share_of_time_waiting_for_batches(fit, objective, tiny_model, tmp_path, monkeypatch):
    """With a fake clock: reading it takes 1 ms; a batch, or a forward pass, takes 50 ms."""
    clock = [0.0]

    def passes(seconds):
        clock[0] += seconds
        return clock[0]

    monkeypatch.setattr(time, "perf_counter", lambda: passes(0.001))
    slow = replace(objective, collate=lambda rows: passes(0.05) and objective.collate(rows))
    shares = [r["data_wait"] for r in fit(tmp_path / "slow", objective=slow).history]
    assert all(0.8 < share < 1 for share in shares), shares
    model = tiny_model()
    model.register_forward_hook(lambda *_: passes(0.05) and None)
    others = [r["data_wait"] for r in fit(tmp_path / "quick", model=model).history]
    assert all(0 < share < 0.2 for share in others), others


def test_token_steps_hit_their_budget_and_read_every_example(fit, rows):
    budget, total, longest = 150, count_tokens(rows), int(token_lengths(rows).max())
    per_epoch = -(-total // budget)
    calls = []
    result = fit(
        max_train_steps=None, num_train_epochs=2, global_batch_size=None, global_batch_tokens=budget,
        eval_strategy="epoch", evaluate=lambda model: calls.append(1) or {"loss": 1.0},
    )  # fmt: skip
    history = [row for row in result.history if "loss" in row]
    read = np.diff([0, *(row["tokens"] for row in history)])
    assert (result.step, len(calls)) == (2 * per_epoch, 2)
    assert all(abs(tokens - budget) < longest for step, tokens in enumerate(read, 1) if step % per_epoch)
    assert history[per_epoch - 1]["tokens"] == total
    assert history[per_epoch - 1]["epoch"] == 1.0
    assert history[-1]["tokens"] == 2 * total


def test_a_step_smaller_than_the_longest_example_is_refused(fit):
    with pytest.raises(UserError, match=r"global_batch_tokens 9 is less than the \d+ tokens of the longest example"):
        fit(global_batch_size=None, global_batch_tokens=9)


def test_a_micro_batch_below_the_longest_example_is_refused(fit):
    with pytest.raises(UserError, match=r"per_device_tokens 9 is less than the \d+ tokens of example \d+, the longest"):
        fit(per_device_batch_size=None, per_device_tokens=9)


def test_workers_collate_the_same_batches(fit, tmp_path):
    assert losses(fit(tmp_path / "two", dataloader_num_workers=2)) == losses(fit(tmp_path / "none"))


def test_workers_ignore_group_signals_and_end_with_parent():
    """Launchers, `timeout` and terminals signal a whole group; a killed process cannot stop its workers."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        found = prefetch(lambda item: (os.getpid(), os.getpgid(0)), itertools.count(), 2)
        os.write(writes, json.dumps([next(found), next(found)]).encode())
        signal.pause()
    os.close(writes)  # the workers hold it, too
    (first, group), (second, other) = json.loads(os.read(reads, 1000))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert {group, other} == {first, second}  # each has its own group
    assert select.select([reads], [], [], 30)[0], "a worker is still alive"
    assert os.read(reads, 1) == b""
    os.close(reads)


def test_gradient_checkpointing_does_not_change_the_loss(fit, tmp_path):
    assert losses(fit(tmp_path / "a", gradient_checkpointing=True)) == pytest.approx(
        losses(fit(tmp_path / "b")), abs=1e-5
    )


def test_bf16_trains_close_to_fp32(fit, tmp_path):
    assert losses(fit(tmp_path / "a", mixed_precision="bf16")) == pytest.approx(losses(fit(tmp_path / "b")), abs=0.05)


def test_layers_that_chance_skips_and_experts_are_trained():
    """LayerDrop skips a layer at random; batch norm cannot train on one example."""

    class Skipping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.experts, self.norm = (
                torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2)),
                torch.nn.BatchNorm1d(3),
            )

        def forward(self, x):
            return self.norm(self.experts[0](x if self.training else self.first(x)))

    model = Skipping()
    before = model.norm.running_mean.clone()

    def loss(model, batch):
        return model(batch["x"]).sum()

    objective = SimpleNamespace(collate=lambda rows: {"x": torch.ones(len(rows), 3)}, loss=loss)
    assert freeze_unreached(Accelerator(cpu=True), model, objective, {}) == ["unused.weight", "unused.bias"]
    assert model.training
    assert torch.equal(model.norm.running_mean, before)


def test_unused_parameters_are_frozen(tokenizer):
    config = XLNetConfig(vocab_size=101, d_model=22, n_layer=1, n_head=2, d_inner=31, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)

    def collate(rows):
        return {"input_ids": torch.tensor([r["ids"] for r in rows]), "labels": torch.tensor([0] * len(rows))}

    objective = classification(collate, "single_label_classification")
    state = torch.get_rng_state()
    frozen = freeze_unreached(Accelerator(cpu=True), model, objective, {"ids": [5, 6, 7]})
    assert "transformer.mask_emb" in frozen
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
