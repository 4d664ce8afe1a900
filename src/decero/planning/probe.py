"""Time a few real steps of a run, with its own model, rows, order, packing, precision and loop."""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from decero.data.order import Rows
from decero.data.packing import Packed
from decero.data.sizes import BatchSize
from decero.data.stream import Stream
from decero.data.warmup import LengthWarmup
from decero.execution.objective import Objective
from decero.training.data_loader import step_loader
from decero.training.loop import train
from decero.training.memory import peak_memory
from decero.training.runs import Run
from decero.training.sharding import Sharded

Evaluate = Callable[[nn.Module, Dataset], Any]  # evaluates held-out rows
SECONDS = 10.0  # of timed steps; with the warm-up, at most twice as long
MAX_STEPS = 30
SLOW_EVALUATION = 2.0  # seconds; slower evaluation batches are timed only once
WARM_UP = 2  # steps that are not counted
HARMLESS = {"num_warmup_steps": 0, "num_decay_steps": None, "learning_rate": 1e-9}  # cannot diverge, fits few steps


@dataclass(frozen=True)
class Probe:
    """The result of a probe.

    step_s: seconds of a full step. steps: number of timed steps, of which step_s is the median. share: the share of
    the examples of a step that each timed step had. peak_bytes: peak memory of the GPU, or else of the process.
    low_s, high_s: seconds of a full step as fast, and as slow, as the fastest and slowest tenth of the timed steps.
    """

    step_s: float
    steps: int
    share: float
    peak_bytes: int
    low_s: float
    high_s: float


class _Done(Exception):  # noqa: N818 (not an error)
    """End the training loop: the probe is complete."""


def sample_load(run: Run, dataset: Dataset | Stream, objective: Objective) -> BatchSize:
    """Return the average size of a step of the run, over its first steps, as they are after a warm-up."""
    objective = whole_rows(objective)
    no_workers = run.training.model_copy(update={"dataloader_num_workers": 0, "batch_warmup": None})
    total = BatchSize(0, 0, 0, 0, 0)
    with closing(step_loader(run.accelerator, dataset, objective, no_workers, run.seed)) as loader:
        for step in range(int(min(8, loader.last, loader.steps_per_epoch))):
            micro_batches = loader.at(step)
            for micro in micro_batches:
                total = total.plus(micro.size(objective))
            if total.examples >= 512:  # enough for an average; large steps are slow to collate
                break
    return total.times(run.accelerator.num_processes / (step + 1))


def whole_rows(objective: Objective) -> Objective:
    """Return the objective without the warm-up of row lengths, which would make the first steps small."""
    collate: Any = objective.collate
    if isinstance(collate, Packed) and isinstance(collate.collate, LengthWarmup):
        return replace(objective, collate=replace(collate, collate=collate.collate.collate))
    return replace(objective, collate=collate.collate) if isinstance(collate, LengthWarmup) else objective


def probe(
    run: Run, model: PreTrainedModel, objective: Objective, dataset: Dataset | Stream, load: BatchSize,
    seconds: float | None = None,
) -> Probe:  # fmt: skip
    """Train `model` for about `seconds` (default: SECONDS) with the loop of the run. Do not use it afterwards.

    Steps are whole: with `data.length_warmup` or `training.batch_warmup` the first ones of the run take less.
    A step that would take too long is reduced to the examples that fit. The time of a full step is then extrapolated
    linearly from this step and one with a single example per process.
    """
    seconds, objective = SECONDS if seconds is None else seconds, whole_rows(objective)
    accelerator = run.accelerator
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), tempfile.TemporaryDirectory(prefix="decero-probe-") as folder:

        def timed(rows: Dataset | Stream, examples: int | None, limit: float, most: int) -> list[float]:
            """Return the seconds of each step after the first."""
            stop = _Stopwatch(accelerator, limit, most)
            changes: dict[str, Any] = (
                {} if examples is None else {"global_batch_size": examples, "global_batch_tokens": None}
            )
            changes |= {"max_train_steps": most + 1, "num_train_epochs": None, "compile": False}  # it never gets there
            changes |= {"save_steps": most + 1, "batch_warmup": None}
            changes |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": None, "logging_steps": most}
            with suppress(_Done):
                short = replace(
                    run,
                    optim=run.optim.model_copy(update=HARMLESS),
                    training=run.training.model_copy(update=changes), output=Path(folder), resume=False, progress=False,
                )  # fmt: skip
                train(short, model, rows, objective, evaluate=stop)
            return np.diff(stop.times).tolist()

        world = accelerator.num_processes
        one = min(timed(dataset, world, seconds / 4, 4))  # one example per process, the shortest possible step
        affordable = main_process_value(accelerator, max(1, int(seconds / (WARM_UP + 3) / one)) * world)
        examples = None if affordable >= load.examples else affordable
        if not objective.packed:  # to find the peak, put the longest rows in one step
            rows = Rows(dataset).dataset
            longest = np.argsort(-objective.row_sizes(rows).most, kind="stable")[: examples or round(load.examples)]
            timed(rows.select(longest), examples, 0, 1)
        times = timed(dataset, examples, seconds, MAX_STEPS + WARM_UP)
    counted = times[WARM_UP - 1 :] or times
    step_s, share = float(np.median(counted)), 1.0
    if examples is not None:
        share = examples / load.examples
        per_example = (step_s - one) / (examples - world) if examples > world and step_s > one else step_s / examples
        step_s += per_example * (load.examples - examples)
    low, high = (float(quantile) / float(np.median(counted)) for quantile in np.quantile(counted, (0.1, 0.9)))
    return Probe(step_s, len(counted), share, peak_memory(accelerator), low * step_s, high * step_s)


def time_evaluation(
    accelerator: Accelerator, evaluate: Evaluate | None, model: nn.Module, objective: Objective,
    held_out: Dataset | None, batch_size: int,
) -> float:  # fmt: skip
    """Estimate the seconds of an evaluation from a few batches. The first has the longest rows, for peak memory."""
    if evaluate is None or held_out is None:
        return 0.0
    lengths, size = objective.row_sizes(held_out).most, batch_size * accelerator.num_processes
    order, seconds = np.argsort(-lengths, kind="stable"), 0.0
    for rows in (order[:size], order[:: -(-len(order) // (2 * size))]):
        started = time.perf_counter()
        evaluate(model, held_out.select(rows))
        elapsed = time.perf_counter() - started
        seconds = elapsed * float(lengths.sum() / lengths[rows].sum())
        if main_process_value(accelerator, elapsed > SLOW_EVALUATION):
            break
    return seconds


class _Stopwatch:
    """Record the time after each step, and stop the loop at its limit, on all processes at the same step."""

    def __init__(self, accelerator: Accelerator, limit: float, most: int):
        self.accelerator, self.limit, self.most = accelerator, limit, most
        self.times: list[float] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        late = len(self.times) > 1 and self.times[-1] - self.times[0] > self.limit
        if len(self.times) >= self.most or main_process_value(self.accelerator, late):
            if isinstance(model, Sharded):
                model.gather()  # the next call trains the same model
            raise _Done
        return {}


def main_process_value(accelerator: Accelerator, value: Any) -> Any:
    """Return the value of the main process on every process."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]
