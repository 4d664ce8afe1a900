"""Selective copying: say again, in order, the tokens that stood among blanks."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from decero.data.collators import IGNORED
from decero.data.synthetic import generator

BLANK_TOKEN, ASKED = 1, 2


@dataclass(frozen=True)
class SelectiveCopying:
    """Rows `. a . . b . ? ?` with the labels `a b` at the question marks (Gu & Dao 2023, section 4.1.1).

    The places of the tokens differ from row to row, so that no fixed distance solves the task.
    """

    vocab_size: int
    length: int
    num_tokens: int

    def row(self, split: str, seed: int, index: int) -> dict[str, list[int]]:
        """Return input_ids and labels, both (length,)."""
        draw, read = generator(split, seed, index), self.length - self.num_tokens
        places_N = np.sort(draw.choice(read, self.num_tokens, replace=False))
        tokens_N = draw.integers(ASKED + 1, self.vocab_size, self.num_tokens)
        input_ids = np.full(self.length, BLANK_TOKEN)
        input_ids[read:] = ASKED
        input_ids[places_N] = tokens_N
        labels = np.full(self.length, IGNORED)
        labels[read:] = tokens_N
        return {"input_ids": input_ids.tolist(), "labels": labels.tolist()}

    def chance(self, rows: Dataset) -> tuple[float, str]:
        return 1 / (self.vocab_size - ASKED - 1), "any token"
