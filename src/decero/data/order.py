"""Decide the order of examples: a pure function of (seed, epoch), the same for any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, LargeList, List, Value

INTEGERS = ("bool", "int8", "uint8", "int16", "int32", "int64")


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return a permutation of range(size) that depends only on (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def seed_sequence(*parts: int) -> int:
    """Combine several numbers into one 63-bit seed, for libraries that take a single seed."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)


class RowIndex(NamedTuple):
    """The epoch and number of a row. A dummy row keeps the processes in step; its loss has weight zero."""

    epoch: int
    row: int
    dummy: bool = False


@dataclass(frozen=True, eq=False)
class Schedule:
    """Decide which examples each optimizer step reads, whatever the number of processes and their memory.

    sizes: (examples,), the size of each: 1, or its number of tokens (at least 1).
    batch: the mean size of a step.

    Steps take examples in the order of the epoch. After k steps the epoch has read k * `batch`, less at most a part of
    one example. The last step takes the rest. So all epochs have the same number of steps, and a cumulative sum tells
    where a step begins. When sizes are tokens, `batch` must be at least the longest example; then no step is empty.
    """

    sizes: np.ndarray
    batch: int
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-int(self.sizes.sum()) // self.batch)

    def from_step(self, step: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the epoch and the examples of each step from `step` to `last` - 1, without reading earlier steps."""
        steps, ordered = self.steps_per_epoch, -1
        order = total = np.empty(0, dtype=int)
        for current in range(step, last):
            epoch, within = divmod(current, steps)
            if epoch != ordered:
                order, ordered = epoch_order(self.seed, epoch, len(self.sizes)), epoch
                total = np.cumsum(self.sizes[order])
            first, end = np.searchsorted(total, [within * self.batch, (within + 1) * self.batch], side="right")
            yield epoch, order[first:end]


@dataclass(frozen=True, eq=False)
class BatchSplit:
    """Split examples into micro-batches: each takes as many examples as `limit` allows, and at least one.

    sizes: (examples,), the size of each: 1 or its tokens; for an encoder-decoder also (examples, 2), one per side.
    The size of a micro-batch is the sum of its examples' sizes. If `padded`, it is the number of examples times the
    largest size, per side; then examples are sorted by length, longest first, to keep padding small.
    """

    sizes: np.ndarray
    limit: int
    padded: bool = False

    def size(self, examples: Sequence[int] | np.ndarray) -> int:
        """Return the size of a micro-batch of these examples."""
        return int(self._cumulative(np.asarray(examples, dtype=int))[-1]) if len(examples) else 0

    def __call__(self, examples: np.ndarray) -> list[np.ndarray]:
        micros, left = [], examples
        if self.padded:
            left = examples[np.argsort(-self._sides(examples).sum(axis=1), kind="stable")]
        while len(left):
            candidates = left[: max(1, self.limit)]  # a size is at least 1, so no more can fit
            fitting = int(np.searchsorted(self._cumulative(candidates), self.limit, side="right"))
            micros.append(left[: max(1, fitting)])
            left = left[max(1, fitting) :]
        return micros

    def _sides(self, examples: np.ndarray) -> np.ndarray:
        """Return the sizes, (examples, sides)."""
        sizes = self.sizes[examples]
        return sizes[:, None] if sizes.ndim == 1 else sizes

    def _cumulative(self, examples: np.ndarray) -> np.ndarray:
        """Return the size of a micro-batch of the first example, the first two, and so on."""
        sides = self._sides(examples)
        if self.padded:
            return np.arange(1, len(sides) + 1) * np.maximum.accumulate(sides, axis=0).sum(axis=1)
        return sides.sum(axis=1).cumsum()


def shard_step(epoch: int, examples: np.ndarray, cut: BatchSplit, rank: int, world_size: int) -> list[list[RowIndex]]:
    """Return the micro-batches of one process for a step that reads `examples`.

    Every process gets an equal share of the examples and the same number of micro-batches. A process with too few gets
    dummy rows, whose loss has weight zero.
    """
    cuts = [cut(share) for share in np.array_split(examples, world_size)]
    mine = [[RowIndex(epoch, int(row)) for row in micro] for micro in cuts[rank]]
    missing = max(map(len, cuts)) - len(mine)
    return mine + [[RowIndex(epoch, int(examples[0]), dummy=True)]] * missing


class Rows:
    """Read rows of a data set by `RowIndex`; each row gets its `epoch`, `index` and `dummy`.

    Lists of integers, such as `input_ids`, come as int64 arrays, and lists of booleans as bool arrays: making Python
    lists took half of the time of reading.
    For a stream, reads from its first rows.
    """

    def __init__(self, dataset: Any):
        self.dataset: Dataset = getattr(dataset, "first_rows", dataset)
        features = getattr(self.dataset, "features", None) or {}
        self.arrays = [name for name, feature in features.items() if _holds_integers(feature)]
        others = [name for name in features if name not in self.arrays]
        if self.arrays:
            self.integers = self.dataset.select_columns(self.arrays).with_format("arrow")
            self.others = self.dataset.select_columns(others) if others else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[RowIndex]) -> list[dict]:
        numbers = [index.row for index in indices]
        if not self.arrays:
            columns = self.dataset[numbers]
        else:
            table = self.integers[numbers]
            columns = {name: _arrays(table[name]) for name in self.arrays}
            columns |= {} if self.others is None else self.others[numbers]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [
            row | {"epoch": index.epoch, "index": index.row, "dummy": index.dummy}
            for row, index in zip(rows, indices, strict=True)
        ]


def _holds_integers(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return isinstance(feature, List | LargeList) and isinstance(inner, Value) and inner.dtype in INTEGERS


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """Return each list of integers as an array of its own values; None for a null."""
    kind = bool if pa.types.is_boolean(column.type.value_type) else np.int64
    if column.null_count or not len(column):
        return [None if row is None else np.array(row, dtype=kind) for row in column.to_pylist()]
    whole = pa.concat_arrays(column.chunks)  # each row is a chunk of its own
    values = whole.flatten().to_numpy(zero_copy_only=False).astype(kind)  # a copy: a collator may write into a row
    ends = whole.offsets.to_numpy().tolist()
    return [values[begin - ends[0] : end - ends[0]] for begin, end in pairwise(ends)]
