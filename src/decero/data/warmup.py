"""Shorten the rows of the first steps: sequence-length warm-up."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from decero.data.sizes import Sizes, sizes_of

SHORTEST_SHARE = 1 / 4  # of the longest row, at the first step
CUT = ("input_ids", "starts_word")


@dataclass
class LengthWarmup:
    """Cut rows to a length that grows in equal steps from a quarter of `max_length` to all of it.

    share: of the run's steps, until rows are whole. The tokens behind the cut are not read in that epoch; the step has
    fewer tokens and is faster. A row carries the `progress` of the run, from 0 to 1; a row without it is whole.
    Source: Li et al. 2022, "The Stability-Efficiency Dilemma", section 4, with truncation.
    """

    collate: Callable[[list[dict]], dict[str, Tensor]]
    max_length: int
    share: float

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.collate([self.cut(row) for row in rows])

    def length(self, progress: float) -> int:
        """Return the most tokens of a row at this progress, at least 2."""
        grown = min(1.0, progress / self.share)
        return max(2, round(self.max_length * (SHORTEST_SHARE + (1 - SHORTEST_SHARE) * grown)))

    def cut(self, row: dict) -> dict:
        """Return the row, cut. It does not hold the end of a document any more."""
        most = self.length(row.get("progress", 1.0))
        if len(row["input_ids"]) <= most:
            return row
        return (
            row | {name: row[name][:most] for name in CUT if name in row} | ({"ends": False} if "ends" in row else {})
        )

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return the sizes of whole rows, which are the most that rows can have."""
        return sizes_of(self.collate, ids_N, labels_N)
