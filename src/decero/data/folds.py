"""Divide the rows of train into folds, one of which is the test split: cross-validation for small data."""

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from decero.data.columns import text_hashes
from decero.data.corpus import hold_out, numbered
from decero.errors import UserError


def fold_of_rows(dataset: Dataset, text_column: str, folds: int, seed: int, labels: Any = None) -> np.ndarray:
    """Return the fold of each row, (rows,). Equal texts share a fold; each label is spread evenly, to one text.

    labels: class ids (rows,), or None to spread the texts alone. The folds depend only on texts, labels and seed.
    Raises UserError for fewer different texts than folds.
    """
    _, first_T, text_N = np.unique(text_hashes(dataset, text_column), return_index=True, return_inverse=True)
    if len(first_T) < folds:
        raise UserError(f"data.fold: {folds} folds of {len(first_T)} different texts; give fewer folds, or more rows")
    order_T = np.random.default_rng(seed).permutation(len(first_T))
    if labels is not None:
        order_T = order_T[np.argsort(np.asarray(labels)[first_T[order_T]], kind="stable")]
    fold_T = np.empty(len(first_T), dtype=np.int64)
    fold_T[order_T] = np.arange(len(first_T)) % folds
    return fold_T[text_N]


def one_fold(
    corpus: DatasetDict, text_column: str, number: int, folds: int, seed: int, validation_fraction: float, labels: Any
) -> DatasetDict:
    """Return a corpus whose test split is one fold of train, and whose train split is the rest of it.

    Validation rows are held out from the rest, unless the corpus has them. labels: as for `fold_of_rows`.
    """
    train = numbered(corpus["train"])
    tested = fold_of_rows(train, text_column, folds, seed, labels) == number
    rest = DatasetDict(corpus | {"train": train.select(np.flatnonzero(~tested))})
    if validation_fraction and "validation" not in rest:
        rest = hold_out(rest, {"validation": validation_fraction}, text_column, "data.fold")
    return DatasetDict(rest | {"test": train.select(np.flatnonzero(tested))})
