"""Build the micro-batches of each optimizer step; worker processes collate them in advance."""

import ctypes
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader

from decero.config.sections import TrainingSection
from decero.data.order import BatchSplit, RowIndex, Rows, Schedule, shard_step
from decero.data.sizes import BatchSize, Sizes, both_sides, sizes_of
from decero.data.stream import Stream
from decero.data.warmup import first_part
from decero.errors import UserError
from decero.execution.objective import Batch, Objective

MEND = "raise it or lower data.max_length (for pairs: data.max_source_length, data.max_target_length)"


class MicroBatch(NamedTuple):
    """A collated micro-batch.

    indices: its examples; for a stream, their positions in the step. weight: 1, or 0 for a dummy.
    """

    batch: Batch
    indices: list[int]
    weight: int

    def size(self, objective: Objective) -> BatchSize:
        """Return its size; zero for a dummy."""
        return objective.size(self.batch, len(self.indices)).times(self.weight)


def workers_of(accelerator: Accelerator, training: TrainingSection) -> int:
    """Return the number of worker processes. A GPU would wait for batches made by its own process; a CPU is busy."""
    if training.dataloader_num_workers is not None:
        return training.dataloader_num_workers
    return 0 if accelerator.device.type == "cpu" else 2


class StepLoader:
    """Yield the micro-batches of this process, one step at a time.

    Calling `at(step)` in order is fast; any other step restarts the workers. So changing the micro-batch size needs
    only a restart: prefetched batches are dropped, and the current step is built again from the same examples.

    Raises UserError when `training.global_batch_tokens` or `per_device_tokens` is smaller than the longest example
    (for pairs, both sides).
    """

    def __init__(
        self, accelerator: Accelerator, dataset: Dataset, objective: Objective, training: TrainingSection, seed: int
    ):
        self.rank, self.world_size, self.workers = (
            accelerator.process_index, accelerator.num_processes, workers_of(accelerator, training)
        )  # fmt: skip
        self.rows, self.objective, self.batch_warmup = Rows(dataset), objective, training.batch_warmup
        tokens, limit = training.global_batch_tokens, training.per_device_tokens
        ones = np.ones(len(dataset), dtype=np.int64)
        sizes = objective.row_sizes(dataset) if tokens or limit else both_sides(ones, 0 * ones)
        if tokens and tokens < (mean := sizes.mean.max()):
            raise UserError(
                f"training.global_batch_tokens {tokens} is less than the {mean} tokens of the longest example; {MEND}"
            )
        if limit and limit < sizes.most.max():
            raise UserError(
                f"training.per_device_tokens {limit} is less than the {sizes.most.max()} tokens of example "
                f"{sizes.most.argmax():,}, the longest; {MEND}"
            )
        self.schedule = Schedule(sizes.mean if tokens else ones, tokens or training.global_batch_size or 1, seed)
        self.steps_per_epoch: float = self.schedule.steps_per_epoch
        self.last = training.max_train_steps or (training.num_train_epochs or 0) * self.schedule.steps_per_epoch
        if limit:
            self.unit, padded = "tokens", not objective.packed
            self.split = BatchSplit(sizes.counted(padded), limit, padded)
        else:
            size = training.per_device_batch_size
            self.unit, self.split = "rows", BatchSplit(ones, size if isinstance(size, int) else len(dataset))
        self.waited = 0.0  # seconds that the loop waited for batches
        self._prefetched: Iterator[list[MicroBatch]] | None = None
        self._next = -1

    def at(self, step: int) -> list[MicroBatch]:
        """Return the collated micro-batches of a step; add the waiting time to `waited`."""
        start = time.perf_counter()
        if self._prefetched is None or step != self._next:
            self._prefetched = self._from(step)
        micro_batches, self._next = next(self._prefetched), step + 1
        self.waited += time.perf_counter() - start
        return micro_batches

    def limit(self, limit: int) -> None:
        """Set the largest micro-batch, in rows or tokens (`unit`), from the next call on."""
        self.split, self._prefetched = replace(self.split, limit=limit), None

    def close(self) -> None:
        """Stop the worker processes. The garbage collector would need five seconds for each."""
        self._prefetched = None

    def epoch(self, done: int) -> float:
        """Return the number of passes over the data after `done` steps."""
        return done / self.steps_per_epoch

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint must save, besides the step number, to continue with the next step."""
        return None

    def restore(self, step: int, state: dict[str, Any] | None) -> None:
        """Continue at `step` with the `state` that a checkpoint saved."""

    def _from(self, step: int) -> Iterator[list[MicroBatch]]:
        def places() -> Iterator[tuple[float, list[list[RowIndex]]]]:
            for number, (epoch, examples) in enumerate(self.schedule.from_step(step, self.last), start=step):
                progress = number / self.last
                examples = first_part(examples, progress, self.batch_warmup)
                yield progress, shard_step(epoch, examples, self.split, self.rank, self.world_size)

        return prefetch(self._collated, places(), self.workers)

    def _collated(self, step: tuple[float, list[list[RowIndex]]]) -> list[MicroBatch]:
        """Load and collate the rows of each micro-batch. Each row gets the `progress` of the run, from 0 to 1."""
        progress, micro_batches = step
        return [
            MicroBatch(
                self.objective.collate([row | {"progress": progress} for row in self.rows.__getitems__(places)]),
                [place.row for place in places],
                0 if places[0].dummy else 1,
            )
            for places in micro_batches
        ]


class StreamedStepLoader(StepLoader):
    """Yield the micro-batches of a `Stream`.

    The position in the stream cannot be computed from the step number. So two positions are kept: the start of the
    current step, to build it again with smaller micro-batches, and the start of the next step, for checkpoints. Every
    process reads and tokenises the whole stream and collates its own share of each step.

    Raises UserError without `training.max_train_steps`, and when `training.global_batch_tokens` or
    `per_device_tokens` is smaller than the longest possible row.
    """

    def __init__(
        self, accelerator: Accelerator, dataset: Stream, objective: Objective, training: TrainingSection, seed: int
    ):
        self.rank, self.world_size, self.workers = (
            accelerator.process_index, accelerator.num_processes, workers_of(accelerator, training)
        )  # fmt: skip
        self.stream, self.objective, self.seed = dataset, objective, seed
        self.batch_warmup = training.batch_warmup
        tokens, limit = training.global_batch_tokens, training.per_device_tokens
        longest = self._sizes(np.array([dataset.max_length]))
        for name, budget, row in (("global_batch", tokens, longest.mean), ("per_device", limit, longest.most)):
            if budget and budget < row.max():
                raise UserError(
                    f"training.{name}_tokens {budget} is less than the longest possible row "
                    f"({row.max()} tokens); {MEND}"
                )
        if training.max_train_steps is None:
            raise UserError("training.num_train_epochs: streams have no length; set training.max_train_steps instead")
        self.batch = tokens or training.global_batch_size or 1
        self.tokens_of = (lambda lengths: self._sizes(lengths).mean) if tokens else None
        self.last, self.steps_per_epoch = training.max_train_steps, math.inf
        if limit:
            self.unit, padded = "tokens", not objective.packed
            self.split = BatchSplit(np.empty(0, dtype=np.int64), limit, padded)
        else:
            size = training.per_device_batch_size
            self.unit, self.split = "rows", BatchSplit(np.empty(0), size if isinstance(size, int) else self.batch)
        self.waited, self._prefetched, self._next = 0.0, None, -1
        self._states: dict[int, dict[str, Any]] = {0: {}}

    def epoch(self, done: int) -> float:
        """Return the number of complete passes; the length of the current pass is unknown."""
        return float(self._states[done].get("epoch", 0))

    def state(self) -> dict[str, Any]:
        return self._states[self._next]

    def restore(self, step: int, state: dict[str, Any] | None) -> None:
        self._states, self._prefetched = {step: state or {}}, None

    def _from(self, step: int) -> Iterator[list[MicroBatch]]:
        state = self._states[step]

        def shares():
            """Yield for each step the micro-batches of this process, the sizes of all rows, and the next state."""
            tokenise_prefetched = partial(prefetch, workers=self.workers)
            steps = self.stream.steps(self.seed, self.batch, self.tokens_of, state, tokenise_prefetched)
            for number, (epoch, first, rows, after) in enumerate(steps, start=step):
                more = {"epoch": epoch, "progress": number / self.last}
                rows = first_part(rows, number / self.last, self.batch_warmup)
                sizes = np.ones(len(rows), dtype=np.int64)
                if self.unit == "tokens":
                    sizes = self._sizes(self.stream.lengths(rows)).counted(self.split.padded)
                micro_batches = shard_step(
                    epoch, np.arange(len(rows)), replace(self.split, sizes=sizes), self.rank, self.world_size
                )
                own = [
                    [(place, rows[place.row] | more | {"index": first + place.row}) for place in places]
                    for places in micro_batches
                ]
                yield own, sizes, after

        for micro_batches, sizes, after in prefetch(self._collated_rows, shares(), self.workers):
            self.split = replace(self.split, sizes=sizes)
            self._states = {step: state, step + 1: after}
            yield micro_batches
            step, state = step + 1, after

    def _sizes(self, lengths: np.ndarray) -> Sizes:
        """Return the sizes of rows with these numbers of tokens. Rows of a stream have one text, no target."""
        return sizes_of(self.objective.collate, lengths, np.zeros_like(lengths))

    def _collated_rows(self, item: tuple) -> tuple:
        own, sizes, after = item
        micro_batches = [
            MicroBatch(
                self.objective.collate([row | {"dummy": place.dummy} for place, row in micro]),
                [place.row for place, _ in micro],
                0 if micro[0][0].dummy else 1,
            )
            for micro in own
        ]
        return micro_batches, sizes, after


def step_loader(
    accelerator: Accelerator, dataset: Dataset | Stream, objective: Objective, training: TrainingSection, seed: int
) -> StepLoader:
    """Return the loader for prepared rows or for a stream."""
    if isinstance(dataset, Stream):
        return StreamedStepLoader(accelerator, dataset, objective, training, seed)
    return StepLoader(accelerator, dataset, objective, training, seed)


class _Applied:
    """Present a function as a data set, because DataLoader workers look items up in one."""

    def __init__(self, function: Callable):
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        return self.function(item)


def prefetch(function: Callable, items: Iterable, workers: int) -> Iterator[Any]:
    """Run `map(function, items)` in order, in advance in `workers` processes; without workers, on demand."""
    loader: DataLoader = DataLoader(
        _Applied(function),  # type: ignore[arg-type]
        batch_size=None,
        sampler=items,
        collate_fn=_identity,
        num_workers=workers,
        worker_init_fn=_isolate_worker if workers else None,
        generator=torch.Generator(),  # else starting would draw from the random state of dropout
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def _isolate_worker(_: int) -> None:
    """Put a worker into its own process group, so that signals of a launcher or terminal reach only the trainer.

    On Linux the worker ends with its parent, however that ends. Otherwise a killed run would leave workers behind.
    """
    os.setpgid(0, 0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _identity(item: Any) -> Any:
    return item
