"""A step's micro-batches, collated ahead by worker processes, and cut anew when they prove too large for the memory."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader

from decero.data.order import Cut, Place, Rows, Schedule, deal
from decero.data.packing import Packed
from decero.data.rows import token_lengths
from decero.errors import UserError
from decero.training.config import TrainingSection
from decero.training.objectives import Batch, Objective


class Micro(NamedTuple):
    """A collated micro-batch, the examples it was made of, and whether it weighs anything."""

    batch: Batch
    indices: list[int]
    weight: int

    def size(self, objective: Objective) -> list[int]:
        """Scored items and real tokens, those that a decoder behind an encoder writes included."""
        scored = objective.count(self.batch)
        tokens = int(self.batch["attention_mask"].sum()) + ("decoder_input_ids" in self.batch) * scored
        return [self.weight * scored, self.weight * tokens]


class Windows:
    """The micro-batches of this process, a step at a time. `at(step)` in order is fast; any other step begins anew.

    So a smaller cut needs no more than a new start: what was made ahead is thrown away, and the step at hand is made
    again from the same examples.

    Raises UserError when a step of `training.global_batch_tokens` cannot hold the longest example.
    """

    def __init__(
        self, accelerator: Accelerator, dataset: Dataset, objective: Objective, training: TrainingSection, seed: int
    ):
        self.rank, self.world_size, self.workers = (
            accelerator.process_index, accelerator.num_processes, training.dataloader_num_workers
        )  # fmt: skip
        self.source = _Collated(dataset, objective)
        ones = lengths = np.ones(len(dataset), dtype=np.int64)
        if training.global_batch_tokens or training.per_device_tokens:
            lengths = np.maximum(token_lengths(dataset), 1)
        if (tokens := training.global_batch_tokens) and tokens < lengths.max():
            raise UserError(
                f"training.global_batch_tokens {tokens} is less than the {lengths.max()} tokens of the longest "
                "example; raise it or lower data.max_length"
            )
        self.schedule = Schedule(lengths if tokens else ones, tokens or training.global_batch_size or 1, seed)
        self.last = training.max_train_steps or (training.num_train_epochs or 0) * self.schedule.steps_per_epoch
        if training.per_device_tokens:
            self.unit, padded = "tokens", not isinstance(objective.collate, Packed)
            self.cut = Cut(lengths, training.per_device_tokens, padded)
        else:
            size = training.per_device_batch_size
            self.unit, self.cut = "rows", Cut(ones, size if isinstance(size, int) else len(dataset))
        self.waited = 0.0  # seconds in which the loop had nothing to do
        self._ahead: Iterator[list[Micro]] | None = None
        self._next = -1

    def at(self, step: int) -> list[Micro]:
        """The collated micro-batches of a step; the time that this takes is added to `waited`."""
        began = time.perf_counter()
        if self._ahead is None or step != self._next:
            self._ahead = self._from(step)
        window, self._next = next(self._ahead), step + 1
        self.waited += time.perf_counter() - began
        return window

    def limit(self, limit: int) -> None:
        """Cut what is asked for from here on into micro-batches of at most `limit` (rows or tokens: `unit`)."""
        self.cut, self._ahead = replace(self.cut, limit=limit), None

    def _from(self, step: int) -> Iterator[list[Micro]]:
        places = (
            deal(epoch, examples, self.cut, self.rank, self.world_size)
            for epoch, examples in self.schedule.from_step(step, self.last)
        )
        return iter(
            DataLoader(
                self.source,  # type: ignore[arg-type]
                batch_size=None,
                sampler=places,
                collate_fn=list,  # it is collated already
                num_workers=self.workers,
                generator=torch.Generator(),  # else starting would draw from the state that dropout draws from
                multiprocessing_context="fork" if self.workers else None,
            )
        )


class _Collated:
    """A data set whose items are the micro-batches of a window, looked up by the places of their rows."""

    def __init__(self, dataset: Dataset, objective: Objective):
        self.rows, self.objective = Rows(dataset), objective

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, window: list[list[Place]]) -> list[Micro]:
        return [
            Micro(
                self.objective.collate(self.rows.__getitems__(places)),
                [place.row for place in places],
                0 if places[0].stand_in else 1,
            )
            for places in window
        ]
