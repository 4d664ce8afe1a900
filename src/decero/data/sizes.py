"""Sizes of examples and batches: tokens read, tokens written, and the positions that they take."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class BatchSize:
    """The size of one batch, or of several batches and processes together.

    examples: texts, pairs or pictures.
    tokens: input and target tokens without padding; budgets count these.
    scored: items in the sum of the loss, or the sum of their weights.
    places: positions, padding included, or patches of a picture.
    pairs: pairs of positions in self-attention: places times the length of their row.
    written_places, written_pairs: the same for the decoder of an encoder-decoder.
    crossed_pairs: pairs of positions in cross-attention: decoder positions times encoder positions.
    """

    examples: float
    tokens: float
    scored: float
    places: float
    pairs: float
    written_places: float = 0.0
    written_pairs: float = 0.0
    crossed_pairs: float = 0.0

    def plus(self, other: "BatchSize") -> "BatchSize":
        return BatchSize(
            *(one + another for one, another in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def times(self, factor: float) -> "BatchSize":
        return BatchSize(*(factor * value for value in vars(self).values()))


def text_batch_size(batch: dict[str, Tensor], scored: float, examples: int) -> BatchSize:
    """Return the size of a token batch, padded or packed.

    batch: `input_ids`, `attention_mask` and, for an encoder-decoder, `decoder_input_ids`. scored, examples: its counts.
    """
    rows, length = batch["input_ids"].shape
    tokens = int(batch["attention_mask"].sum())
    if "decoder_input_ids" not in batch:
        return BatchSize(examples, tokens, scored, rows * length, rows * length**2)
    written_rows, written = batch["decoder_input_ids"].shape
    return BatchSize(
        examples, tokens + scored, scored, rows * length, rows * length**2,
        written_rows * written, written_rows * written**2, written_rows * written * length,
    )  # fmt: skip


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
