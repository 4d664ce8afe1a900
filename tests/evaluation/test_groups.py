"""Metrics of groups have intervals, also where all answers are right."""

import numpy as np
import pytest
from scipy import stats

from decero.evaluation.groups import group_lines, grouped_metrics
from decero.evaluation.text_metrics import answer_examples


def test_groups_are_scored_apart_with_intervals():
    said = ["You are Ann.", "You are Bob.", "I am Eve", "no"] * 5
    right = ["You are Ann.", "You are Bob.", "You are Eve.", "You are Joe."] * 5
    found = grouped_metrics("text", said, right, [10, 10, 2, 2] * 5, ["Ann", "bob", "Eve", "Joe"] * 5)
    assert list(found) == ["2", "10"]  # numbers in their order
    assert found["10"]["examples"] == 10
    wilson = stats.binomtest(10, 10).proportion_ci(method="wilson")
    assert found["10"]["exact_match"] == pytest.approx([1.0, wilson.low, wilson.high])
    assert found["2"]["exact_match"][0] == 0
    assert found["2"]["answer_found"][0] == 0.5
    value, low, high = found["2"]["token_f1"]
    assert low < value < high
    assert group_lines({"a by k": found})[1].startswith("a by k 10: exact_match 1.000 (0.722 to 1.000), token_f1 1.000")
    assert list(grouped_metrics("text", ["a"] * 2, ["a"] * 2, [None, "en"])) == ["", "en"]


def test_an_answer_is_found_as_whole_words_in_order():
    pairs = [
        ("It is Ann!", "ann"),
        ("Anna", "Ann"),
        ("New York, yes", "new york"),
        ("York New", "New York"),
        ("x", "!"),
    ]
    assert answer_examples(*zip(*pairs, strict=True)).tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("kind", ["summarization", "translation"])
def test_corpus_metrics_have_intervals_of_resamples(kind):
    rng = np.random.default_rng(0)
    words = ["the market rose", "banks fell on monday", "profit news from london", "shares gained after news"]
    right = [words[n] for n in rng.integers(0, 4, 12)]
    said = [words[n] if n % 2 else text for n, text in zip(rng.integers(0, 4, 12), right, strict=True)]
    for name, (value, low, high) in list(grouped_metrics(kind, said, right, ["x"] * 12)["x"].items())[1:]:
        assert low < value < high, name
