"""The micro-batches of each optimizer step, collated in advance by worker processes."""

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
from decero.errors import UserError
from decero.execution.objective import Batch, Objective

MEND = "raise it or lower data.max_length (of pairs data.max_source_length, data.max_target_length)"


class MicroBatch(NamedTuple):
    """A collated micro-batch, the examples it was made of (of a stream: their places in the step), and its weight."""

    batch: Batch
    indices: list[int]
    weight: int

    def size(self, objective: Objective) -> BatchSize:
        """Its size; nothing for a dummy."""
        return objective.size(self.batch, len(self.indices)).times(self.weight)


class StepLoader:
    """The micro-batches of this process, a step at a time. `at(step)` in order is fast; any other step begins anew.

    So a smaller cut needs no more than a new start: what was prefetched is thrown away, and the step at hand is made
    again from the same examples.

    Raises UserError when a step of `training.global_batch_tokens` or a micro-batch of `per_device_tokens` cannot hold
    the longest example, both sides of it.
    """

    def __init__(
        self, accelerator: Accelerator, dataset: Dataset, objective: Objective, training: TrainingSection, seed: int
    ):
        self.rank, self.world_size, self.workers = (
            accelerator.process_index, accelerator.num_processes, training.dataloader_num_workers
        )  # fmt: skip
        self.rows, self.objective = Rows(dataset), objective
        tokens, most = training.global_batch_tokens, training.per_device_tokens
        ones = np.ones(len(dataset), dtype=np.int64)
        sizes = objective.row_sizes(dataset) if tokens or most else both_sides(ones, 0 * ones)
        if tokens and tokens < (mean := sizes.mean.max()):
            raise UserError(
                f"training.global_batch_tokens {tokens} is less than the {mean} tokens of the longest example; {MEND}"
            )
        if most and most < sizes.most.max():
            raise UserError(
                f"training.per_device_tokens {most} is less than the {sizes.most.max()} tokens of example "
                f"{sizes.most.argmax():,}, the longest; {MEND}"
            )
        self.schedule = Schedule(sizes.mean if tokens else ones, tokens or training.global_batch_size or 1, seed)
        self.steps_per_epoch: float = self.schedule.steps_per_epoch
        self.last = training.max_train_steps or (training.num_train_epochs or 0) * self.schedule.steps_per_epoch
        if most:
            self.unit, padded = "tokens", not objective.packed
            self.split = BatchSplit(sizes.counted(padded), most, padded)
        else:
            size = training.per_device_batch_size
            self.unit, self.split = "rows", BatchSplit(ones, size if isinstance(size, int) else len(dataset))
        self.waited = 0.0  # seconds in which the loop had nothing to do
        self._prefetched: Iterator[list[MicroBatch]] | None = None
        self._next = -1

    def at(self, step: int) -> list[MicroBatch]:
        """The collated micro-batches of a step; the time that this takes is added to `waited`."""
        began = time.perf_counter()
        if self._prefetched is None or step != self._next:
            self._prefetched = self._from(step)
        micro_batches, self._next = next(self._prefetched), step + 1
        self.waited += time.perf_counter() - began
        return micro_batches

    def limit(self, limit: int) -> None:
        """From the next call on, split into micro-batches of at most `limit` (rows or tokens: `unit`)."""
        self.split, self._prefetched = replace(self.split, limit=limit), None

    def close(self) -> None:
        """End the worker processes. Left to the garbage collector, each takes five seconds to end."""
        self._prefetched = None

    def epoch(self, done: int) -> float:
        """Passes over the data after so many steps."""
        return done / self.steps_per_epoch

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint has to hold to find the next step again, besides its number."""
        return None

    def go_on(self, step: int, state: dict[str, Any] | None) -> None:
        """Be where a run was that saved this `state` before `step`."""

    def _from(self, step: int) -> Iterator[list[MicroBatch]]:
        places = (
            shard_step(epoch, examples, self.split, self.rank, self.world_size)
            for epoch, examples in self.schedule.from_step(step, self.last)
        )
        return prefetch(self._collated, places, self.workers)

    def _collated(self, micro_batches: list[list[RowIndex]]) -> list[MicroBatch]:
        """The micro-batches of a micro_batches, looked up by the places of their rows."""
        return [
            MicroBatch(
                self.objective.collate(self.rows.__getitems__(places)),
                [place.row for place in places],
                0 if places[0].dummy else 1,
            )
            for places in micro_batches
        ]


class StreamedStepLoader(StepLoader):
    """The same of a `Stream`. Where a step begins is no function of its number, so the states are kept of two: where
    the step at hand began, for a smaller cut, and where the next one does, for a checkpoint.

    Every process reads and tokenises the whole stream and collates its own share of each step.

    Raises UserError without `training.max_train_steps`, and when a step of `training.global_batch_tokens` or a
    micro-batch of `per_device_tokens` might not hold a row.
    """

    def __init__(
        self, accelerator: Accelerator, dataset: Stream, objective: Objective, training: TrainingSection, seed: int
    ):
        self.rank, self.world_size, self.workers = (
            accelerator.process_index, accelerator.num_processes, training.dataloader_num_workers
        )  # fmt: skip
        self.stream, self.objective, self.seed = dataset, objective, seed
        tokens, most = training.global_batch_tokens, training.per_device_tokens
        longest = self._sizes(np.array([dataset.max_length]))
        for name, budget, held in (("global_batch", tokens, longest.mean), ("per_device", most, longest.most)):
            if budget and budget < held.max():
                raise UserError(
                    f"training.{name}_tokens {budget} is less than a row may have ({held.max()} tokens); {MEND}"
                )
        if training.max_train_steps is None:
            raise UserError("training.num_train_epochs: a stream does not say how long it is; give max_train_steps")
        self.batch = tokens or training.global_batch_size or 1
        self.tokens_of = (lambda lengths: self._sizes(lengths).mean) if tokens else None
        self.last, self.steps_per_epoch = training.max_train_steps, math.inf
        if most:
            self.unit, padded = "tokens", not objective.packed
            self.split = BatchSplit(np.empty(0, dtype=np.int64), most, padded)
        else:
            size = training.per_device_batch_size
            self.unit, self.split = "rows", BatchSplit(np.empty(0), size if isinstance(size, int) else self.batch)
        self.waited, self._prefetched, self._next = 0.0, None, -1
        self._states: dict[int, dict[str, Any]] = {0: {}}

    def epoch(self, done: int) -> float:
        """Whole passes over the stream: how long the one at hand is, nobody knows."""
        return float(self._states[done].get("epoch", 0))

    def state(self) -> dict[str, Any]:
        return self._states[self._next]

    def go_on(self, step: int, state: dict[str, Any] | None) -> None:
        self._states, self._prefetched = {step: state or {}}, None

    def _from(self, step: int) -> Iterator[list[MicroBatch]]:
        state = self._states[step]

        def shares():
            """My rows of each step, as micro-batches; the sizes of all of its rows, and the state after it."""
            tokenise_prefetched = partial(prefetch, workers=self.workers)
            for epoch, first, rows, after in self.stream.steps(
                self.seed, self.batch, self.tokens_of, state, tokenise_prefetched
            ):
                sizes = np.ones(len(rows), dtype=np.int64)
                if self.unit == "tokens":
                    sizes = self._sizes(self.stream.lengths(rows)).counted(self.split.padded)
                micro_batches = shard_step(
                    epoch, np.arange(len(rows)), replace(self.split, sizes=sizes), self.rank, self.world_size
                )
                mine = [
                    [(place, rows[place.row] | {"epoch": epoch, "index": first + place.row}) for place in places]
                    for places in micro_batches
                ]
                yield mine, sizes, after

        for micro_batches, sizes, after in prefetch(self._collated_rows, shares(), self.workers):
            self.split = replace(self.split, sizes=sizes)
            self._states = {step: state, step + 1: after}
            yield micro_batches
            step, state = step + 1, after

    def _sizes(self, lengths: np.ndarray) -> Sizes:
        """Of rows of so many tokens; those of a stream are of one text, so none has anything beside it."""
        return sizes_of(self.objective.collate, lengths, np.zeros_like(lengths))

    def _collated_rows(self, item: tuple) -> tuple:
        mine, sizes, after = item
        micro_batches = [
            MicroBatch(
                self.objective.collate([row | {"dummy": place.dummy} for place, row in micro]),
                [place.row for place, _ in micro],
                0 if micro[0][0].dummy else 1,
            )
            for micro in mine
        ]
        return micro_batches, sizes, after


def step_loader(
    accelerator: Accelerator, dataset: Dataset | Stream, objective: Objective, training: TrainingSection, seed: int
) -> StepLoader:
    """The loader of prepared rows or of a stream of them."""
    if isinstance(dataset, Stream):
        return StreamedStepLoader(accelerator, dataset, objective, training, seed)
    return StepLoader(accelerator, dataset, objective, training, seed)


class _Applied:
    """A function as a data set, which is what a DataLoader's processes look items up in."""

    def __init__(self, function: Callable):
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        return self.function(item)


def prefetch(function: Callable, items: Iterable, workers: int) -> Iterator[Any]:
    """`map(function, items)` in order, computed in advance by `workers` processes; without workers, when asked for."""
    loader: DataLoader = DataLoader(
        _Applied(function),  # type: ignore[arg-type]
        batch_size=None,
        sampler=items,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_apart if workers else None,
        generator=torch.Generator(),  # else starting would draw from the state that dropout draws from
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def _apart(_: int) -> None:
    """A worker in a process group of its own: what a launcher or a terminal sends to ours is for who trains.

    Where the kernel can (Linux), it ends with its parent, however that ends; else a killed run would leave it behind.
    """
    os.setpgid(0, 0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _as_it_is(item: Any) -> Any:
    return item
