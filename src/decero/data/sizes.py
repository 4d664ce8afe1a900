"""How large examples and batches are: tokens that are read, tokens that are written, and the places they take."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class BatchSize:
    """What passes through the model: of one batch, or summed over batches and processes.

    examples: texts, pairs or pictures. tokens: real ones, read and written; what budgets count. scored: items that the
    loss is summed over. places: tokens with the padding around them, or patches of a picture. pairs: places times the
    length of their row. written_places, written_pairs: the same for a decoder behind an encoder. crossed_pairs: written
    places times the places that they look back at.
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
            *(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def times(self, factor: float) -> "BatchSize":
        return BatchSize(*(factor * value for value in vars(self).values()))


def text_batch_size(batch: dict[str, Tensor], scored: int, examples: int) -> BatchSize:
    """The size of a batch of tokens, padded or packed: `input_ids`, `attention_mask`, perhaps `decoder_input_ids`."""
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
