"""A few real steps of a run, timed: its own model, rows, order, packing, precision and loop; nothing of it stays."""

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
from decero.data.sizes import BatchSize
from decero.data.stream import Stream
from decero.execution.objective import Objective
from decero.training.data_loader import step_loader
from decero.training.loop import train
from decero.training.memory import peak_memory
from decero.training.runs import Run
from decero.training.sharding import Sharded

Evaluate = Callable[[nn.Module, Dataset], Any]  # what a recipe does with held-out rows
SECONDS = 10.0  # how long steps are timed; with the warm-up, twice as long at most
ENOUGH = 30  # steps
LONG_LOOK = 2.0  # seconds of an evaluation batch that is not repeated
WARM_UP = 2  # steps that are not counted


@dataclass(frozen=True)
class Probe:
    """step_s: seconds of a whole step, the median of `steps` that were timed, each on `share` of its examples.

    peak_bytes: of the process, or of the accelerator, at the highest point so far.
    """

    step_s: float
    steps: int
    share: float
    peak_bytes: int


class _Over(Exception):  # noqa: N818 (no error)
    """The probe has what it wants."""


def sample_load(run: Run, dataset: Dataset | Stream, objective: Objective) -> BatchSize:
    """What a step of the run reads, on average over its first ones."""
    alone = run.training.model_copy(update={"dataloader_num_workers": 0})
    total = BatchSize(0, 0, 0, 0, 0)
    with closing(step_loader(run.accelerator, dataset, objective, alone, run.seed)) as loader:
        for step in range(int(min(8, loader.last, loader.steps_per_epoch))):
            micro_batches = loader.at(step)
            for micro in micro_batches:
                total = total.plus(micro.size(objective))
            if total.examples >= 512:  # enough to know, and long steps take long to collate
                break
    return total.times(run.accelerator.num_processes / (step + 1))


def probe(
    run: Run, model: PreTrainedModel, objective: Objective, dataset: Dataset | Stream, load: BatchSize,
    seconds: float | None = None,
) -> Probe:  # fmt: skip
    """Train `model`, which is not to be used afterwards, for about `seconds` (SECONDS) with the loop of the run.

    A step that would take too long is cut to as many examples as fit. What more examples cost is then read off the line
    through it and a step of a single one.
    """
    seconds = SECONDS if seconds is None else seconds
    accelerator = run.accelerator
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), tempfile.TemporaryDirectory(prefix="decero-probe-") as folder:

        def timed(rows: Dataset | Stream, examples: int | None, limit: float, most: int) -> list[float]:
            """Seconds of each step after the first."""
            stop = _Stopwatch(accelerator, limit, most)
            cut: dict[str, Any] = (
                {} if examples is None else {"global_batch_size": examples, "global_batch_tokens": None}
            )
            cut |= {"max_train_steps": most, "num_train_epochs": None, "save_steps": None, "compile": False}
            cut |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": None, "logging_steps": most}
            with suppress(_Over):
                short = replace(
                    run,
                    optim=run.optim.model_copy(update={"num_warmup_steps": 0, "learning_rate": 1e-9}),  # cannot diverge
                    training=run.training.model_copy(update=cut), output=Path(folder), resume=False, progress=False,
                )  # fmt: skip
                train(short, model, rows, objective, evaluate=stop)
            return np.diff(stop.times).tolist()

        world = accelerator.num_processes
        one = min(timed(dataset, world, seconds / 4, 4))  # an example a process: too small to take long
        affordable = main_process_value(accelerator, max(1, int(seconds / (WARM_UP + 3) / one)) * world)
        examples = None if affordable >= load.examples else affordable
        if not objective.packed:  # the rows that take most memory meet sooner or later
            some = Rows(dataset).dataset
            longest = np.argsort(-objective.row_sizes(some).most, kind="stable")[: examples or round(load.examples)]
            timed(some.select(longest), examples, 0, 1)
        times = timed(dataset, examples, seconds, ENOUGH + WARM_UP)
    counted = times[WARM_UP - 1 :] or times
    step_s, share = float(np.median(counted)), 1.0
    if examples is not None:
        share = examples / load.examples
        each = (step_s - one) / (examples - world) if examples > world and step_s > one else step_s / examples
        step_s += each * (load.examples - examples)
    return Probe(step_s, len(counted), share, peak_memory(accelerator))


def time_evaluation(
    accelerator: Accelerator, look: Evaluate | None, model: nn.Module, objective: Objective, held_out: Dataset | None,
    batch_size: int,
) -> float:  # fmt: skip
    """Seconds that all held-out rows take, by a few batches. The first has the longest rows, for the memory."""
    if look is None or held_out is None:
        return 0.0
    lengths, size = objective.row_sizes(held_out).most, batch_size * accelerator.num_processes
    order, seconds = np.argsort(-lengths, kind="stable"), 0.0
    for some in (order[:size], order[:: -(-len(order) // (2 * size))]):
        started = time.perf_counter()
        look(model, held_out.select(some))
        taken = time.perf_counter() - started
        seconds = taken * float(lengths.sum() / lengths[some].sum())
        if main_process_value(accelerator, taken > LONG_LOOK):
            break
    return seconds


class _Stopwatch:
    """Called by the loop after each step. Stops it when time is over, or steps; then on all processes at once."""

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
                model.gather()  # the next steps are timed with the same model
            raise _Over
        return {}


def main_process_value(accelerator: Accelerator, mine: Any) -> Any:
    """What the main process says."""
    said = [mine]
    if accelerator.num_processes > 1:
        broadcast_object_list(said)
    return said[0]
