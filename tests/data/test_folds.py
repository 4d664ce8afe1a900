"""Folds: each row is tested once, equal texts stay together, labels are spread evenly, nothing leaks into training."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from decero.data.corpus import source_rows
from decero.data.folds import fold_of_rows, one_fold
from decero.errors import UserError


def data(numbers, labels=None):
    texts = [f"text {number}" for number in numbers]
    return Dataset.from_dict({"text": texts, "labels": labels or [number % 3 for number in numbers]})


@given(st.lists(st.integers(0, 40), min_size=7, max_size=60), st.integers(2, 7), st.integers(0, 9))
def test_rows_are_divided_evenly_and_equal_texts_stay_together(numbers, folds, seed):
    rows = data(numbers)
    if len(set(numbers)) < folds:
        with pytest.raises(UserError, match="different texts; give fewer folds"):
            fold_of_rows(rows, "text", folds, seed, rows["labels"])
        return
    fold_of = dict(zip(numbers, fold_of_rows(rows, "text", folds, seed, rows["labels"]).tolist(), strict=True))
    assert [fold_of[number] for number in numbers] == fold_of_rows(rows, "text", folds, seed, rows["labels"]).tolist()
    for kept in (set(numbers), *({n for n in set(numbers) if n % 3 == label} for label in range(3))):
        sizes = np.bincount([fold_of[number] for number in kept], minlength=folds)
        assert sizes.max() - sizes.min() <= 1


def test_each_row_is_tested_once_and_never_trained_on():
    numbers = [*range(50), *range(0, 50, 7)]
    corpus, tested = DatasetDict(train=data(numbers)), []
    for number in range(5):
        found = one_fold(corpus, "text", number, 5, 3, 0.25, corpus["train"]["labels"])
        rows = {split: set(source_rows(found[split])) for split in ("train", "validation", "test")}
        texts = {split: set(found[split]["text"]) for split in rows}
        assert sum(map(len, rows.values())) == len(numbers)
        assert not texts["test"] & (texts["train"] | texts["validation"])
        assert not texts["train"] & texts["validation"]
        assert [corpus["train"]["text"][row] for row in source_rows(found["test"])] == found["test"]["text"]
        tested += list(source_rows(found["test"]))
    assert sorted(tested) == list(range(len(numbers)))
    other = fold_of_rows(corpus["train"], "text", 5, 4)
    assert other.tolist() != fold_of_rows(corpus["train"], "text", 5, 3).tolist()
