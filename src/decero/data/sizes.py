"""Compute how many tokens an example will have on the device, from its row's length, before collating."""

from typing import Any, NamedTuple

import numpy as np


class Sizes(NamedTuple):
    """Token counts of examples, (examples,) each.

    read: the input's tokens, at most. written: the tokens of an encoder-decoder's decoder, at most.
    most, mean: of both sides together, at most and on average; equal unless the objective draws lengths at random.
    """

    read: np.ndarray
    written: np.ndarray
    most: np.ndarray
    mean: np.ndarray

    def counted(self, padded: bool) -> np.ndarray:
        """Return the sizes for a `BatchSplit`: (examples, 2) if each side is padded on its own, else (examples,)."""
        return np.stack([self.read, self.written], axis=1) if padded else self.most


def both_sides(read_N: np.ndarray, written_N: np.ndarray) -> Sizes:
    """Return the sizes of examples whose input and output lengths are known exactly."""
    return Sizes(read_N, written_N, read_N + written_N, read_N + written_N)


def sizes_of(collate: Any, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
    """Return the sizes of rows with these numbers of `input_ids` and `labels`.

    A collator that makes two sides knows its own `example_sizes`. For any other, all tokens are one side, at least 1.
    """
    example_sizes = getattr(collate, "example_sizes", None)
    if example_sizes is not None:
        return example_sizes(ids_N, labels_N)
    return both_sides(np.maximum(ids_N + labels_N, 1), np.zeros_like(ids_N))
