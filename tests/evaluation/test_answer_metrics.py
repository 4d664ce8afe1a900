"""Scores of answers equal the official script of SQuAD 2, whose functions stand here as they were published."""

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decero.evaluation.answer_metrics import answer_scores, best_threshold, by_context_length, mean_scores

SPANISH = ["el", "la", "los", "las", "un", "una", "unos", "unas"]


def normalize(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s).split())


def compute_exact(a_gold, a_pred):
    return int(normalize(a_gold) == normalize(a_pred))


def compute_f1(a_gold, a_pred):
    gold_toks = normalize(a_gold).split() if a_gold else []
    pred_toks = normalize(a_pred).split() if a_pred else []
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official(prediction, references):
    golds = [text for text in references if normalize(text)] or [""]
    return max(compute_exact(a, prediction) for a in golds), max(compute_f1(a, prediction) for a in golds)


def find_best_thresh(scores, none_scores, na_probs):
    """As published, for scores of any kind: questions are answered in the order of their no-answer scores."""
    cur_score = sum(none_scores)
    best_score, best_thresh = cur_score, 0.0
    for i in sorted(range(len(scores)), key=lambda k: na_probs[k]):
        cur_score += scores[i] - none_scores[i]
        if cur_score > best_score:
            best_score, best_thresh = cur_score, na_probs[i]
    return best_score, best_thresh


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The Broncos!", ["Broncos"], 1, 1),
        ("Denver Broncos", ["the Broncos", "Denver's Broncos"], 0, 2 / 3),
        ("", [], 1, 1),
        ("Denver", [], 0, 0),
        ("", ["Denver"], 0, 0),
        ("the", ["Denver"], 0, 0),
        ("x", ["the"], 0, 0),  # a reference of articles alone counts as none
        ("red red blue", ["red blue blue"], 0, 2 / 3),
        ("a-b", ["ab"], 1, 1),
        ("«Broncos»", ["Broncos"], 0, 0),  # only ASCII punctuation is removed
    ],
)
def test_scores_are_those_computed_by_hand(prediction, references, exact, f1):
    assert answer_scores(prediction, references) == pytest.approx((exact, f1))
    assert official(prediction, references) == pytest.approx((exact, f1))


WORDS = st.lists(
    st.sampled_from(["the", "An", "a", "cat", "Cat,", "CATs", "ñu", "¿", ".", "a-n", "\u00a0", ""]), max_size=6
)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_scores_equal_the_official_script(said, wanted):
    prediction, references = " ".join(said), [" ".join(each) for each in wanted]
    assert answer_scores(prediction, references) == pytest.approx(official(prediction, references))


def test_articles_are_those_of_the_setting():
    assert answer_scores("La casa", ["casa"], SPANISH) == (1, 1)
    assert answer_scores("La casa", ["casa"]) == (0, pytest.approx(2 / 3))
    assert answer_scores("a Roma", ["Roma"], SPANISH) == (0, pytest.approx(2 / 3))
    assert answer_scores("the end", ["end"], []) == (0, pytest.approx(2 / 3))


NUMBERS = st.lists(st.tuples(st.integers(-3, 3), st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=8)


@given(NUMBERS)
def test_the_threshold_is_as_good_as_any(drawn):
    margins, answered, refused = np.array(drawn, dtype=float).T
    threshold = best_threshold(margins, answered, refused)
    got = np.where(margins > threshold, refused, answered).sum()
    tried = [np.where(margins > t, refused, answered).sum() for t in (*margins, margins.min() - 1)]
    assert got == pytest.approx(max(tried))
    assert not np.isclose(margins, threshold).any(), "rounding would move a question across the threshold"
    if len(set(margins)) == len(margins):
        assert got == pytest.approx(find_best_thresh(answered, refused, margins)[0])


def test_a_threshold_is_finite_also_without_a_candidate():
    for margins in ([np.inf], [1.0, np.inf], [np.inf, np.inf, -2.0]):
        for best in (0.0, 1.0):
            size = len(margins)
            assert np.isfinite(best_threshold(np.array(margins), np.full(size, best), np.full(size, 1 - best)))


def test_means_are_given_for_both_kinds_of_questions():
    exact, f1 = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 0.5, 1.0, 0.0])
    answerable = np.array([True, True, False, False])
    assert mean_scores(exact, f1, answerable) == {
        "f1": 0.625, "exact_match": 0.5, "has_answer_f1": 0.75, "has_answer_exact_match": 0.5,
        "no_answer_accuracy": 0.5,
    }  # fmt: skip
    assert set(mean_scores(exact, f1, answerable | True)) == {"f1", "exact_match"}


def test_bins_hold_every_question_once():
    lengths = np.array([0, 499, 500, 1999, 2000, 50_000])
    found = by_context_length(lengths, {"f1": np.arange(6.0)})
    assert [(each["from"], each["to"], each["questions"]) for each in found] == [
        (0, 500, 2), (500, 1000, 1), (1000, 2000, 1), (2000, 4000, 1), (4000, None, 1),
    ]  # fmt: skip
    assert [each["f1"] for each in found] == [0.5, 2, 3, 4, 5]
