"""Multi-query associative recall (MQAR): pairs of key and value, then keys whose value is asked for."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from decero.data.collators import IGNORED
from decero.data.synthetic import generator

PARTS = {"test": (0,), "validation": (1,), "train": (2, 3, 4)}  # of a key's values, by (key + value) mod 5


@dataclass(frozen=True)
class Recall:
    """Rows `k1 v1 k2 v2 ... . . k2 . . k1 .`: at each later key, the label is its value (Arora et al. 2023, section 3).

    Every pair is asked for once, at a gap after the pairs that follows a power law with exponent `power` - 1, as
    repeated bigrams of a language do. Other places hold random ids. No key-value pair occurs in two splits, so a model
    cannot know a value by heart.
    """

    vocab_size: int
    length: int
    num_pairs: int
    power: float = 0.01

    def row(self, split: str, seed: int, index: int) -> dict[str, list[int]]:
        """Return input_ids and labels, both (length,)."""
        draw, half, N = generator(split, seed, index), self.vocab_size // 2, self.num_pairs
        keys_N = draw.choice(np.arange(1, half), N, replace=False)
        values_N: list[int] = []
        for key in keys_N:
            free = [v for v in range(half, self.vocab_size) if (key + v) % 5 in PARTS[split] and v not in values_N]
            values_N.append(int(draw.choice(free)))
        space = (self.length - 2 * N) // 2
        weights = np.arange(1, space + 1) ** (self.power - 1)
        places_N = 2 * N + 2 * draw.choice(space, N, replace=False, p=weights / weights.sum())
        input_ids = draw.integers(1, self.vocab_size, self.length)
        input_ids[0 : 2 * N : 2], input_ids[1 : 2 * N : 2], input_ids[places_N] = keys_N, values_N, keys_N
        labels = np.full(self.length, IGNORED)
        labels[places_N] = values_N
        return {"input_ids": input_ids.tolist(), "labels": labels.tolist()}

    def chance(self, rows: Dataset) -> tuple[float, str]:
        return 1 / self.num_pairs, "any value of the text"
