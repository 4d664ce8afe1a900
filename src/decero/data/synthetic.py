"""Make rows of synthetic tasks: every row is a pure function of (split, seed, index)."""

from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor

from decero.data.collators import IGNORED

SYNTHETIC_SPLITS = ("train", "validation", "test")
PADDING = 0  # the id that no task uses


class SyntheticTask(Protocol):
    """A task whose rows are drawn. Ids run from 1 to `vocab_size` - 1, and a row has at most `length` of them."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def length(self) -> int: ...

    def __hash__(self) -> int: ...

    def row(self, split: str, seed: int, index: int) -> dict[str, list[int]]:
        """Return input_ids and labels, both (length,). Labels are aligned with the logits that predict them."""

    def chance(self, rows: Dataset) -> tuple[float, str]:
        """Return the accuracy of the best guess without what the task tests, and what that guess is."""


def generator(split: str, seed: int, index: int) -> np.random.Generator:
    """Return the source of randomness of one row."""
    return np.random.default_rng([seed, SYNTHETIC_SPLITS.index(split), index])


def make_rows(task: SyntheticTask, split: str, seed: int, size: int) -> Dataset:
    """Return the first `size` rows of a split."""
    rows = [task.row(split, seed, index) for index in range(size)]
    features = Features({name: List(Value("int64")) for name in ("input_ids", "labels")})
    return Dataset.from_list(rows, features=features)


def collate_aligned(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad rows to the right: input_ids, attention_mask and labels, (batch, longest row) each."""
    longest = max(len(row["input_ids"]) for row in rows)
    filled = {name: np.full((len(rows), longest), value) for name, value in BLANK.items()}
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        filled["input_ids"][number, :size] = row["input_ids"]
        filled["labels"][number, :size] = row["labels"]
        filled["attention_mask"][number, :size] = 1
    return {name: torch.from_numpy(values) for name, values in filled.items()}


BLANK = {"input_ids": PADDING, "attention_mask": 0, "labels": IGNORED}
