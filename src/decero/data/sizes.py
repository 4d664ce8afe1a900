"""What an example comes to on a device, both sides of it, told by how long its row is: before anything is collated."""

from typing import Any, NamedTuple

import numpy as np


class Sizes(NamedTuple):
    """Tokens of examples, (examples,) each: those that are read and those that a decoder behind an encoder writes.

    read, written: at most. most, mean: of both together, at most and on average, which are one where nothing is drawn.
    """

    read: np.ndarray
    written: np.ndarray
    most: np.ndarray
    mean: np.ndarray

    def counted(self, padded: bool) -> np.ndarray:
        """What a `BatchSplit` counts: (examples, 2) where each side is padded to its own longest, else (examples,)."""
        return np.stack([self.read, self.written], axis=1) if padded else self.most


def both_sides(read_N: np.ndarray, written_N: np.ndarray) -> Sizes:
    """Sizes of examples of which it is known what is read and what is written."""
    return Sizes(read_N, written_N, read_N + written_N, read_N + written_N)


def sizes_of(collate: Any, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
    """Sizes of rows of so many `input_ids` and `labels`: a collator's `example_sizes` tells where it makes two sides.

    Of any other collator they are one side, and 1 at least.
    """
    tell = getattr(collate, "example_sizes", None)
    if tell is not None:
        return tell(ids_N, labels_N)
    return both_sides(np.maximum(ids_N + labels_N, 1), np.zeros_like(ids_N))
