"""The order of examples: a pure function of (seed, epoch), cut the same way for any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of range(size) that depends on (seed, epoch) and nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def seed_sequence(*parts: int) -> int:
    """A 63-bit seed from several numbers, for libraries that take one."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)


class RowIndex(NamedTuple):
    """Where a row stands. A dummy is computed, to keep the processes in step, and weighs nothing."""

    epoch: int
    row: int
    dummy: bool = False


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which examples each optimizer step reads: a function of these numbers, not of processes and not of memory.

    sizes: what each example counts, 1 or its tokens (at least 1). Steps take the next examples of the epoch's order:
    after k of them the epoch has read k times `batch`, or less by a part of one example; the last takes what is left.
    So a step reads `batch` on average, all epochs have the same number of steps, and where a step begins is looked up
    in a running sum. Whoever counts tokens lets `batch` hold the longest example; then no step is empty.
    """

    sizes: np.ndarray
    batch: int
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-int(self.sizes.sum()) // self.batch)

    def from_step(self, step: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """The epoch and the examples of each step from `step` up to `last`, found without reading what came before."""
        steps, ordered = self.steps_per_epoch, -1
        order = read = np.empty(0, dtype=int)
        for now in range(step, last):
            epoch, within = divmod(now, steps)
            if epoch != ordered:
                order, ordered = epoch_order(self.seed, epoch, len(self.sizes)), epoch
                read = np.cumsum(self.sizes[order])
            first, end = np.searchsorted(read, [within * self.batch, (within + 1) * self.batch], side="right")
            yield epoch, order[first:end]


@dataclass(frozen=True, eq=False)
class BatchSplit:
    """How examples become micro-batches: as many of the next as the limit holds, and always at least one.

    sizes: what each example counts, 1 or its tokens, (examples,); with a decoder behind an encoder also (examples, 2).
    A micro-batch counts the sum, or if `padded` its examples times the largest, of either side by itself; then it takes
    like with like, the longest first, so that little is padding.
    """

    sizes: np.ndarray
    limit: int
    padded: bool = False

    def size(self, examples: Sequence[int] | np.ndarray) -> int:
        """What a micro-batch of these examples counts."""
        return int(self._running(np.asarray(examples, dtype=int))[-1]) if len(examples) else 0

    def __call__(self, examples: np.ndarray) -> list[np.ndarray]:
        micros, left = [], examples
        if self.padded:
            left = examples[np.argsort(-self._sides(examples).sum(axis=1), kind="stable")]
        while len(left):
            near = left[: max(1, self.limit)]  # each counts 1 at least, so no more can be held
            held = int(np.searchsorted(self._running(near), self.limit, side="right"))
            micros.append(left[: max(1, held)])
            left = left[max(1, held) :]
        return micros

    def _sides(self, examples: np.ndarray) -> np.ndarray:
        """(examples, sides)."""
        sizes = self.sizes[examples]
        return sizes[:, None] if sizes.ndim == 1 else sizes

    def _running(self, examples: np.ndarray) -> np.ndarray:
        """What the first, the first two ... of these examples count."""
        sides = self._sides(examples)
        if self.padded:
            return np.arange(1, len(sides) + 1) * np.maximum.accumulate(sides, axis=0).sum(axis=1)
        return sides.sum(axis=1).cumsum()


def shard_step(epoch: int, examples: np.ndarray, cut: BatchSplit, rank: int, world_size: int) -> list[list[RowIndex]]:
    """The micro-batches of one process for a step that reads `examples`.

    Every process gets an equal share of the examples and the same number of micro-batches; who has too few gets
    dummies, which weigh nothing.
    """
    cuts = [cut(share) for share in np.array_split(examples, world_size)]
    mine = [[RowIndex(epoch, int(row)) for row in micro] for micro in cuts[rank]]
    missing = max(map(len, cuts)) - len(mine)
    return mine + [[RowIndex(epoch, int(examples[0]), dummy=True)]] * missing


class Rows:
    """A data set read by `RowIndex`, many at once; each row is told where it stands. Of a stream, its first rows."""

    def __init__(self, dataset: Any):
        self.dataset: Dataset = getattr(dataset, "first_rows", dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, places: Sequence[RowIndex]) -> list[dict]:
        columns = self.dataset[[place.row for place in places]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [row | {"epoch": p.epoch, "index": p.row, "dummy": p.dummy} for row, p in zip(rows, places, strict=True)]
