"""Make the first steps of a run smaller: shorter rows (sequence-length warm-up), fewer examples (batch warm-up)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from decero.data.sizes import Sizes, sizes_of

FIRST_SHARE = 1 / 4  # of a row, or of the examples of a step, at the first step
CUT = ("input_ids", "starts_word")


def grown(progress: float, share: float) -> float:
    """Return the size of a step's rows or examples, as a share of the whole: linear from FIRST_SHARE to 1 at `share`.

    progress: of the run, from 0 to 1.
    """
    return min(1.0, FIRST_SHARE + (1 - FIRST_SHARE) * progress / share)


def first_part(examples: Any, progress: float, share: float | None) -> Any:
    """Return the first examples of a step, at least one; all without a warm-up. The others are not read in this epoch.

    Source: Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size", for larger steps later on.
    """
    return examples if share is None else examples[: max(1, round(len(examples) * grown(progress, share)))]


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
        return max(2, round(self.max_length * grown(progress, self.share)))

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
