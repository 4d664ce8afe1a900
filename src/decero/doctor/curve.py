"""Checks of the schedule and of what the run logged: metrics.jsonl."""

import itertools
import math
import statistics
from collections.abc import Iterator

from decero.doctor.findings import Finding
from decero.doctor.inspected_run import InspectedRun

FEWEST = 8  # lines with a loss: with fewer a curve has no shape


def schedule(work: InspectedRun) -> Iterator[Finding]:
    """Warm-up against the length of the run, and a learning rate that is spent, or far from it, when the run ends."""
    optim, last = work.config.optim, work.steps
    logged = [row for row in work.metrics if "learning_rate" in row]
    rates = [row["learning_rate"] for row in logged]
    found = []
    if optim.num_warmup_steps > last / 3:
        severity = "bad" if optim.num_warmup_steps > last else "warn"
        what = f"{optim.num_warmup_steps} steps of warm-up in a run of {last}"
        mend = f"lower optim.num_warmup_steps to {max(1, last // 10)}, or train longer"
        found.append(Finding("schedule", severity, what, "optim", mend))  # type: ignore[arg-type]
    spent = [
        row["step"]
        for row in logged
        if row["step"] > optim.num_warmup_steps and row["learning_rate"] < 0.01 * max(rates)
    ]
    if spent and logged[-1]["step"] - spent[0] > 0.1 * logged[-1]["step"]:
        what = f"the learning rate is below 1 % of its peak from step {spent[0]} of {logged[-1]['step']} on"
        mend = "nothing is learnt from there: end the run earlier or let the schedule last as long"
        found.append(Finding("schedule", "warn", what, "metrics.jsonl", mend))
    training = work.config.training
    exact = training.max_train_steps or (work.share == 1 and training.global_batch_size)
    if logged and logged[-1]["step"] < last and exact:
        at, share = logged[-1]["step"], rates[-1] / max(max(rates), 1e-30)
        left = f"at {share:.0%} of its peak learning rate"
        if work.result:
            mend = "the decay was never had: shorten the schedule (training.max_train_steps) to what the run needs"
            found.append(Finding("schedule", "note", f"ended at step {at} of {last}, {left}", "metrics.jsonl", mend))
        else:
            what = f"the run stands at step {at} of {last}, {left}"
            found.append(
                Finding("schedule", "note", what, "metrics.jsonl", "finish it with --resume, if nothing is running")
            )
    fine = f"{optim.num_warmup_steps} of {last} steps are warm-up, then {optim.schedule}"
    yield from found or [Finding("schedule", "ok", fine)]


def curve(work: InspectedRun) -> Iterator[Finding]:
    """The shape of the training loss: not finite, divergence, plateau from the start, spikes, still falling fast.

    Steps are compared by medians of several lines, changes with how much the loss shakes from one line to the next.
    """
    rows = [row for row in work.metrics if "loss" in row]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    bad = next((step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)), None)
    if bad is not None:
        mend = "lower optim.learning_rate, raise optim.num_warmup_steps or set training.mixed_precision=no"
        yield Finding("curve", "bad", f"the loss is not finite at step {bad}", "metrics.jsonl", mend)
        return
    if len(losses) < FEWEST:
        yield Finding("curve", "ok", f"{len(losses)} losses logged; a curve needs {FEWEST}")
        return
    under_way = not work.result and steps[-1] < (work.config.training.max_train_steps or 0)
    found = [*_shape(steps, losses, work.config.model.config is not None, under_way), *_spikes(steps, losses)]
    fine = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps[-1]} steps, without a spike"
    yield from found or [Finding("curve", "ok", fine)]


def _shape(steps: list[int], losses: list[float], random_weights: bool, under_way: bool) -> Iterator[Finding]:
    width = max(2, min(len(losses) // 5, 25))
    windows = [statistics.median(losses[i : i + width]) for i in range(len(losses) - width + 1)]
    start, end, lowest = max(losses[0], windows[0]), windows[-1], min(windows)
    shake = _shake(losses) / math.sqrt(width)
    if end > lowest + max(0.2 * abs(lowest), 6 * shake):
        at = steps[windows.index(lowest) + width // 2]
        what = f"the loss rose from {lowest:.3f} (step {at}) to {end:.3f} and stayed there"
        yield Finding(
            "curve", "bad", what, "metrics.jsonl", "lower optim.learning_rate or raise optim.num_warmup_steps"
        )
    elif start - end < max(0.02 * abs(start), 2 * shake):
        severity = "bad" if random_weights else "warn"
        what = f"the loss hardly moved, {start:.3f} -> {end:.3f} in {steps[-1]} steps"
        mend = "see overfit: if that is well, raise optim.learning_rate"
        yield Finding("curve", severity, what, "metrics.jsonl", mend)  # type: ignore[arg-type]
    elif not under_way:
        fifth = windows[-1 - max(1, len(losses) // 5)] - end
        if fifth > max(0.1 * (start - end), 0.02, 3 * shake):
            what = f"the loss still fell by {fifth:.3f} in the last fifth, of {start - end:.3f} in all"
            yield Finding("curve", "warn", what, "metrics.jsonl", "train longer (training.max_train_steps)")


def _spikes(steps: list[int], losses: list[float]) -> Iterator[Finding]:
    """Losses far above the five before them: by 8 times the usual change and 15 % at least."""
    shake, spikes = _shake(losses), []
    for i in range(5, len(losses)):
        before = statistics.median(losses[i - 5 : i])
        if losses[i] - before > max(8 * shake, 0.15 * abs(before)):
            spikes.append((steps[i], before, losses[i]))
    if spikes:
        step, before, loss = spikes[0]
        many = f"{len(spikes)} spike{'s' if len(spikes) > 1 else ''} in the loss"
        what = f"{many}, first {before:.3f} -> {loss:.3f} at step {step}"
        mend = "lower optim.learning_rate or optim.max_grad_norm, or set optim.arguments.betas=[0.9, 0.95]"
        yield Finding("curve", "warn", what, "metrics.jsonl", mend)


def _shake(losses: list[float]) -> float:
    """How much the loss changes between lines, fall or trend apart: 1.48 median absolute deviations of the changes."""
    changes = [b - a for a, b in itertools.pairwise(losses)]
    middle = statistics.median(changes)
    return 1.48 * statistics.median(abs(change - middle) for change in changes)


def waiting(work: InspectedRun) -> Iterator[Finding]:
    """The share of time in which the loop waited for data, a median over the log: above 2 % is worth a worker."""
    waits = [row["data_wait"] for row in work.metrics if "data_wait" in row]
    if not waits:
        return
    share = statistics.median(waits)
    if share > 0.02:
        workers = work.config.training.dataloader_num_workers
        mend = f"raise training.dataloader_num_workers {workers} to {max(1, 2 * workers)}"
        yield Finding("data wait", "warn", f"{share:.1%} of the time the loop waits for data", "metrics.jsonl", mend)
    else:
        yield Finding("data wait", "ok", f"{share:.1%} of the time")
