"""Functions on text columns give the results of plain Python, without lists of texts."""

import numpy as np
import pytest
import xxhash
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.data import columns
from decero.data.columns import rows_with_text, text_hashes
from decero.data.corpus import hold_out

SPACES = [chr(i) for i in range(0x110000) if chr(i).isspace()]
texts = st.lists(
    st.one_of(st.none(), st.just(""), st.text(st.sampled_from(SPACES), max_size=3), st.text(max_size=5)),
    min_size=1,
    max_size=23,
)


def column(values, kind="string", name="text"):
    return Dataset.from_dict({name: values}, features=Features({name: Value(kind)}))


def cut_and_swapped(values):
    """A data set of two tables with selected rows, so that it has several chunks and unused rows."""
    half = concatenate_datasets([column(values[:7]), column(values[7:])])
    return half.select(range(len(values) - 1, -1, -1))


def chosen_by_python(left, right):
    return [i for i, (s, t) in enumerate(zip(left, right, strict=True)) if s and t and s.strip() and t.strip()]


@pytest.mark.long
@settings(deadline=None)
@given(left=texts, right=texts)
def test_rows_with_text_agree_with_python_strip(left, right):
    size = min(len(left), len(right))
    left, right = left[:size], right[:size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "CHUNK", 5)
        whole = concatenate_datasets([column(left, "large_string"), column(right, name="other")], axis=1)
        assert rows_with_text(whole, ["text", "other"]).tolist() == chosen_by_python(left, right)
        backwards = cut_and_swapped(left)
        assert rows_with_text(backwards, ["text"]).tolist() == chosen_by_python(left[::-1], left[::-1])


@pytest.mark.long
def test_all_unicode_white_space_counts_as_no_text():
    points = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    assert rows_with_text(column(points), ["text"]).tolist() == chosen_by_python(points, points)


def test_a_null_column_has_no_text():
    assert rows_with_text(Dataset.from_dict({"text": [None, None]}), ["text"]).tolist() == []


@settings(deadline=None)
@given(values=texts)
def test_hashes_equal_those_of_single_texts(values):
    expected = [xxhash.xxh64_intdigest(str(text).encode()) for text in values]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "CHUNK", 5)
        assert text_hashes(column(values), "text").tolist() == expected
        assert text_hashes(cut_and_swapped(values), "text").tolist() == expected[::-1]


def carved_one_by_one(texts, wanted):
    """The reference implementation: one row after the other."""
    places = {split: [] for split in ("train", *wanted)}
    for index, text in enumerate(texts):
        point, place = xxhash.xxh64_intdigest(str(text).encode()) / 2**64, "train"
        for split, share in wanted.items():
            if 0 <= point < share:
                place = split
                break
            point -= share
        places[place].append(index)
    return places


@pytest.mark.parametrize("wanted", [{"validation": 0.2, "test": 0.3}, {"test": 0.1}])
def test_new_splits_equal_those_of_the_reference(wanted):
    texts = [f"row {i % 900}" if i % 7 else None for i in range(1000)]
    train = Dataset.from_dict({"text": texts, "number": range(1000)})
    found = hold_out(DatasetDict(train=train), wanted, "text", "data")
    assert {split: part["number"][:] for split, part in found.items()} == carved_one_by_one(texts, wanted)
    assert np.concatenate([part["number"][:] for part in found.values()]).size == 1000
