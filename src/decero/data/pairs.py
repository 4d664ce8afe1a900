"""Batches for an encoder-decoder: source and target, for every text-to-text task.

Only `PairCollator` makes the padding, the decoder's shifted input and the -100 of labels that are not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from decero.data.collators import IGNORED
from decero.data.order import RowIndex, Rows
from decero.data.sizes import Sizes, both_sides

Pair = tuple[np.ndarray, np.ndarray]


@dataclass
class PairCollator:
    """Pad sources and targets on the right to the longest of the batch.

    decoder_start_token_id: the decoder's first input token, from the model's configuration. The rest of its input is
    the labels shifted by one (Vaswani et al. 2017, section 3.1). None: the last token of each target, which in mBART is
    its language.
    """

    tokenizer: PreTrainedTokenizerBase
    decoder_start_token_id: int | None

    def pair(self, row: dict) -> Pair:
        """Return source ids and target ids. An objective that makes both from one text overrides this."""
        return np.asarray(row["input_ids"], dtype=np.int64), np.asarray(row["labels"], dtype=np.int64)

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return the sizes of what `pair` makes of rows with these token counts; overridden together with `pair`."""
        return both_sides(ids_N, labels_N)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` (batch, memory), `decoder_input_ids`, `labels` (batch, length)."""
        return self.batch([self.pair(row) for row in rows])

    def batch(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """Pad pairs of ids to a batch."""
        pad = self.tokenizer.pad_token_id
        sources, targets = zip(*pairs, strict=True)
        read, attention = padded(sources, pad), padded([np.ones_like(s) for s in sources], 0)
        first = self.decoder_start_token_id
        written = padded([np.concatenate(([t[-1] if first is None else first], t[:-1])) for t in targets], pad)
        batch = {"input_ids": read, "attention_mask": attention, "decoder_input_ids": written}
        batch["labels"] = padded(targets, IGNORED)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


@dataclass
class ShuffledSources:
    """Pair each target with the source of another row, to measure how much a decoder uses its source.

    The rise of the loss is what the model has learnt from the source. The other row is half of `dataset` away, whatever
    the batch and the number of processes, so it is not part of the same text.
    """

    pairs: PairCollator
    dataset: Dataset

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        size = len(self.dataset)
        others = Rows(self.dataset).__getitems__([RowIndex(r["epoch"], (r["index"] + size // 2) % size) for r in rows])
        return self.pairs.batch(
            [(self.pairs.pair(other)[0], self.pairs.pair(row)[1]) for other, row in zip(others, rows, strict=True)]
        )


def padded(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Pad rows on the right with `fill` to (rows, longest)."""
    full = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for b, row in enumerate(rows):
        full[b, : len(row)] = row
    return full
