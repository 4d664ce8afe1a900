"""Texts without labels, for a teacher: typed as the labelled ones, and none of a held-out split."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from decero.data.columns import text_hashes


def without_labels(texts: Dataset, like: Dataset, columns: Sequence[str]) -> Dataset:
    """Return the text columns and a column `labels` of zeros, with the types of `like`."""
    texts, first = texts.select_columns(list(columns)), like[0]["labels"]
    zero = [0.0] * len(first) if isinstance(first, list) else type(first)(0)
    texts = texts.add_column("labels", [zero] * len(texts), feature=like.features["labels"])
    return texts.cast(like.select_columns([*columns, "labels"]).features)


def keep_out(texts: Dataset, held_out: Sequence[Dataset], columns: Sequence[str]) -> Dataset:
    """Return the rows of `texts` that stand in none of the held-out data sets, by all their columns."""
    seen = np.concatenate([np.empty(0, dtype=np.uint64), *(row_hashes(rows, columns) for rows in held_out)])
    return texts.select(np.flatnonzero(~np.isin(row_hashes(texts, columns), seen)))


def row_hashes(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Return (rows,) 64-bit hashes of the texts of each row."""
    hashes = np.zeros(len(dataset), dtype=np.uint64)
    for column in columns:
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + text_hashes(dataset, column)  # wraps around
    return hashes


def joined(parts: Sequence[Dataset], columns: Sequence[str]) -> Dataset:
    """Return the rows of all parts, with these columns only."""
    return concatenate_datasets([part.select_columns(list(columns)) for part in parts])
