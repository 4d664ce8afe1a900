"""Minimal pairs: ties are one half, so a system that knows nothing has 50 %."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from decero.evaluation.pair_accuracy import UnigramModel, accuracy_by, contrast_of, pair_table, preferences
from decero.evaluation.statistics import independent_size, wilson

SCORES = st.lists(st.tuples(*[st.floats(-99, 0) | st.sampled_from([-1.0, -2.0])] * 2), min_size=1, max_size=29)


@given(SCORES)
def test_swapped_pairs_have_the_opposite_accuracy(pairs):
    good, bad = np.array(pairs).T
    np.testing.assert_array_equal(preferences(good, bad) + preferences(bad, good), 1)
    np.testing.assert_array_equal(preferences(good, good), 0.5)


def test_scores_that_differ_by_rounding_are_equal():
    good = np.array([-31.0, -31.0, -31.0])
    assert preferences(good, good + np.array([1e-6, 1e-3, -1e-3])).tolist() == [0.5, 0, 1]


@pytest.mark.parametrize(("right", "size"), [(0, 7), (3, 7), (97, 100), (41, 41)])
def test_the_interval_is_wilsons(right, size):
    wanted = stats.binomtest(right, size).proportion_ci(method="wilson")
    assert wilson([1.0] * right + [0.0] * (size - right)) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_groups_have_their_own_accuracy_and_a_line():
    systems = {"accuracy": np.array([1, 0.5, 0, 1]), "unigram": np.array([0.5, 0.5, 0.5, 0.5])}
    found = accuracy_by(["island", "island", "npi", "npi"], systems, range(4))
    assert [(name, each["pairs"], each["accuracy"][0]) for name, each in found.items()] == [
        ("island", 2, 0.75), ("npi", 2, 0.5)
    ]  # fmt: skip
    assert found["npi"]["accuracy"][1] < 0.5 < found["npi"]["accuracy"][2]
    lines = pair_table(found)
    assert lines[0] == "| | pairs | accuracy | unigram |"
    assert lines[2].startswith("| island | 2 | 75.0 [")
    assert lines[3].endswith("| 50.0 |")


def test_a_unigram_model_knows_words_and_no_order():
    model = UnigramModel([["the", "cat", "the"], ["sat"]])
    assert model(["the"]) == pytest.approx(np.log(3 / 8))  # 4 words, 3 kinds, 1 for all unknown ones
    assert model(["dog"]) == pytest.approx(np.log(1 / 8))
    assert model(["the", "cat", "sat"]) == model(["sat", "the", "cat"])
    assert sum(np.exp(model([word])) for word in ("the", "cat", "sat", "dog")) == pytest.approx(1)


def test_pairs_of_one_contrast_count_as_their_answers_differ():
    values, one_word = [1.0] * 10 + [0.0] * 10, ["a"] * 10 + ["b"] * 10
    assert independent_size(values, range(20)) == 20
    assert independent_size(values, one_word) == pytest.approx(1)  # two words, one of each kind: one free value
    assert independent_size(values, ["a", "b"] * 10) == 20  # both words are right as often: no more alike than others
    assert independent_size([1.0] * 20, one_word) == 2
    wide = accuracy_by(["x"] * 20, {"accuracy": np.array(values)}, one_word)["x"]["accuracy"]
    assert wide[1] < 0.1 < 0.9 < wide[2]


def test_a_contrast_is_what_only_one_text_has():
    este, esta = ["Este", "libro"], ["Esta", "libro"]
    assert contrast_of(este, esta) == contrast_of(["esta", "casa"], ["este", "casa"])
    assert contrast_of(["a", "b"], ["b", "a"]) != contrast_of(["a", "c"], ["c", "a"])
