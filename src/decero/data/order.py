"""The order of examples: a pure function of (seed, epoch), cut the same way for any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of range(size) that depends on (seed, epoch) and nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(size)


class Place(NamedTuple):
    """Where a row stands. A stand-in is computed, to keep the processes in step, and weighs nothing."""

    epoch: int
    row: int
    stand_in: bool = False


@dataclass(frozen=True)
class Schedule:
    """Which examples each process reads at each optimizer step. A step's examples do not depend on the processes.

    A step takes the next `global_batch_size` of the epoch's order (the last step of an epoch what is left), deals them
    to `world_size` ranks and cuts each share into micro-batches of at most `per_device_batch_size`. Every rank gets
    the same number of micro-batches; where there are fewer examples than ranks, some are stand-ins that weigh nothing.
    """

    size: int
    global_batch_size: int
    per_device_batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.size // self.global_batch_size)

    def micro_batches(self, step: int) -> int:
        """How many micro-batches step `step` has on each rank."""
        first = step % self.steps_per_epoch * self.global_batch_size
        examples = min(self.global_batch_size, self.size - first)
        return -(-examples // (self.per_device_batch_size * self.world_size))

    def from_step(self, step: int, last: int) -> Iterator[list[Place]]:
        """Micro-batches of this rank for the steps from `step` up to `last`: found in O(1), never empty."""
        order, ordered = np.empty(0, dtype=int), -1
        for now in range(step, last):
            epoch, within = divmod(now, self.steps_per_epoch)
            if epoch != ordered:
                order, ordered = epoch_order(self.seed, epoch, self.size), epoch
            window = order[within * self.global_batch_size : (within + 1) * self.global_batch_size]
            share = np.array_split(window, self.world_size)[self.rank]
            for micro in np.array_split(share, self.micro_batches(now)):
                yield [Place(epoch, int(i)) for i in micro] or [Place(epoch, int(window[0]), stand_in=True)]


class Rows:
    """A data set read by `Place`, many at once; each row is told where it stands."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, places: Sequence[Place]) -> list[dict]:
        columns = self.dataset[[place.row for place in places]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [
            row | {"epoch": p.epoch, "index": p.row, "stand_in": p.stand_in}
            for row, p in zip(rows, places, strict=True)
        ]
