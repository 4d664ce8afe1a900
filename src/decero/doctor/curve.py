"""Check the schedule and the log of a run (metrics.jsonl)."""

import itertools
import math
import statistics
from collections.abc import Iterator

from decero.doctor.findings import Finding
from decero.doctor.inspected_run import InspectedRun

FEWEST = 8  # logged losses that a curve needs


def schedule(work: InspectedRun) -> Iterator[Finding]:
    """Check the length of the warm-up, and the learning rate at the end of the run."""
    optim, last = work.config.optim, work.steps
    logged = [row for row in work.metrics if "learning_rate" in row]
    rates = [row["learning_rate"] for row in logged]
    found = []
    if optim.num_warmup_steps > last / 3:
        severity = "bad" if optim.num_warmup_steps > last else "warn"
        what = f"warm-up takes {optim.num_warmup_steps} of {last} steps"
        mend = f"lower optim.num_warmup_steps to {max(1, last // 10)}, or train longer"
        found.append(Finding("schedule", severity, what, "optim", mend))  # type: ignore[arg-type]
    spent = [
        row["step"]
        for row in logged
        if row["step"] > optim.num_warmup_steps and row["learning_rate"] < 0.01 * max(rates)
    ]
    if spent and logged[-1]["step"] - spent[0] > 0.1 * logged[-1]["step"]:
        what = f"the learning rate is below 1 % of its peak from step {spent[0]} to the end ({logged[-1]['step']})"
        mend = "the model learns nothing there: end the run earlier or use a longer schedule"
        found.append(Finding("schedule", "warn", what, "metrics.jsonl", mend))
    training = work.config.training
    exact = training.max_train_steps or (work.share == 1 and training.global_batch_size)
    if logged and logged[-1]["step"] < last and exact:
        at, share = logged[-1]["step"], rates[-1] / max(max(rates), 1e-30)
        left = f"with the learning rate at {share:.0%} of its peak"
        if work.result:
            mend = "the decay of the learning rate was cut short: lower training.max_train_steps to the steps needed"
            found.append(Finding("schedule", "note", f"ended at step {at} of {last}, {left}", "metrics.jsonl", mend))
        else:
            what = f"not finished: step {at} of {last}, {left}"
            found.append(
                Finding(
                    "schedule", "note", what, "metrics.jsonl", "continue it with --resume, unless it is still running"
                )
            )
    fine = f"{optim.num_warmup_steps} of {last} steps are warm-up, then the schedule is {optim.schedule}"
    yield from found or [Finding("schedule", "ok", fine)]


def curve(work: InspectedRun) -> Iterator[Finding]:
    """Check the training loss: not finite, divergence, plateau, spikes, still falling fast.

    Steps are compared by medians over several log lines. A change counts if it is large against the noise between
    lines.
    """
    rows = [row for row in work.metrics if "loss" in row]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    bad = next((step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)), None)
    if bad is not None:
        mend = "lower optim.learning_rate, raise optim.num_warmup_steps or set training.mixed_precision=no"
        yield Finding("curve", "bad", f"the loss is not finite at step {bad}", "metrics.jsonl", mend)
        return
    if len(losses) < FEWEST:
        yield Finding("curve", "ok", f"{len(losses)} training losses logged; this check needs {FEWEST}")
        return
    under_way = not work.result and steps[-1] < (work.config.training.max_train_steps or 0)
    found = [*_shape(steps, losses, work.config.model.config is not None, under_way), *_spikes(steps, losses)]
    fine = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps[-1]} steps, no spikes"
    yield from found or [Finding("curve", "ok", fine)]


def _shape(steps: list[int], losses: list[float], random_weights: bool, under_way: bool) -> Iterator[Finding]:
    width = max(2, min(len(losses) // 5, 25))
    windows = [statistics.median(losses[i : i + width]) for i in range(len(losses) - width + 1)]
    start, end, lowest = max(losses[0], windows[0]), windows[-1], min(windows)
    noise = _noise(losses) / math.sqrt(width)
    if end > lowest + max(0.2 * abs(lowest), 6 * noise):
        at = steps[windows.index(lowest) + width // 2]
        what = f"the loss rose from {lowest:.3f} (step {at}) to {end:.3f} and stayed there"
        yield Finding(
            "curve", "bad", what, "metrics.jsonl", "lower optim.learning_rate or raise optim.num_warmup_steps"
        )
    elif start - end < max(0.02 * abs(start), 2 * noise):
        severity = "bad" if random_weights else "warn"
        what = f"the loss hardly changed, {start:.3f} -> {end:.3f} in {steps[-1]} steps"
        mend = "if the check overfit is ok, raise optim.learning_rate"
        yield Finding("curve", severity, what, "metrics.jsonl", mend)  # type: ignore[arg-type]
    elif not under_way:
        fifth = windows[-1 - max(1, len(losses) // 5)] - end
        if fifth > max(0.1 * (start - end), 0.02, 3 * noise):
            what = f"the loss still fell by {fifth:.3f} in the last fifth of the steps, of {start - end:.3f} in total"
            yield Finding("curve", "warn", what, "metrics.jsonl", "train longer (training.max_train_steps)")


def _spikes(steps: list[int], losses: list[float]) -> Iterator[Finding]:
    """Find losses above the five before them by at least 8 times the noise and 15 %."""
    noise, spikes = _noise(losses), []
    for i in range(5, len(losses)):
        before = statistics.median(losses[i - 5 : i])
        if losses[i] - before > max(8 * noise, 0.15 * abs(before)):
            spikes.append((steps[i], before, losses[i]))
    if spikes:
        step, before, loss = spikes[0]
        count = f"{len(spikes)} spike{'s' if len(spikes) > 1 else ''} in the loss"
        what = f"{count}, first {before:.3f} -> {loss:.3f} at step {step}"
        mend = "lower optim.learning_rate or optim.max_grad_norm, or set optim.arguments.betas=[0.9, 0.95]"
        yield Finding("curve", "warn", what, "metrics.jsonl", mend)


def _noise(losses: list[float]) -> float:
    """Estimate the noise of the loss between log lines, without its trend.

    This is 1.48 times the median absolute deviation of the changes.
    """
    changes = [b - a for a, b in itertools.pairwise(losses)]
    middle = statistics.median(changes)
    return 1.48 * statistics.median(abs(change - middle) for change in changes)


def waiting(work: InspectedRun) -> Iterator[Finding]:
    """Check the share of time spent waiting for data (median over the log): warn above 2 %."""
    waits = [row["data_wait"] for row in work.metrics if "data_wait" in row]
    if not waits:
        return
    share = statistics.median(waits)
    if share > 0.02:
        workers = work.config.training.dataloader_num_workers
        more = 4 if workers is None else max(1, 2 * workers)
        mend = f"raise training.dataloader_num_workers {'(not set)' if workers is None else workers} to {more}"
        yield Finding("data wait", "warn", f"training waits for data {share:.1%} of the time", "metrics.jsonl", mend)
    else:
        yield Finding("data wait", "ok", f"training waits for data {share:.1%} of the time")
