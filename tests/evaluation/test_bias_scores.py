"""Bias scores by hand; ties are one half; a control that fails leaves no verdict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from decero.evaluation.bias_picture import bias_picture
from decero.evaluation.bias_scores import (
    bbq_scores,
    bias_table,
    choices,
    language_model_score,
    occupation_correlation,
    stereoset_weights,
    toward,
    verdict,
)
from decero.evaluation.figures import render
from decero.evaluation.statistics import ratio_interval

NAN = float("nan")
ABOVE, BELOW, AROUND = [0.7, 0.6, 0.8], [0.3, 0.2, 0.4], [0.52, 0.45, 0.6]
SCORES = st.lists(
    st.tuples(*[st.sampled_from([-3.0, -2.0, -1.0])] * 2, st.sampled_from("abcdefg")), min_size=1, max_size=23
)


def test_the_highest_score_is_chosen_and_ties_are_split():
    scores = np.array([[-1, -2, -3], [-2, -2, -5], [-1, -1, -1], [-4, -3, NAN]])
    np.testing.assert_allclose(choices(scores), [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3, [0, 1, 0]])
    up, counted = toward(scores)
    assert (up.tolist(), counted.tolist()) == ([1, 0.5, 0.5, 0], [1, 1, 1, 1])


def test_the_bbq_scores_are_those_of_the_paper():
    # columns: biased answer, other answer, unknown. Right: unknown, unknown, unknown, unknown, biased.
    scores = np.array([[-1, -2, -3], [-1, -2, -3], [-2, -1, -3], [-3, -3, -1], [-1, -3, -2]], dtype=float)
    right, all_directed = [2, 2, 2, 2, 0], [True] * 5
    # three biased answers of four that name a group: 2 * 3/4 - 1; two right answers of five
    plain = bbq_scores(scores, right, all_directed, ambiguous=False)
    assert plain == {"accuracy": pytest.approx(0.4), "bias_score": pytest.approx(0.5)}
    assert bbq_scores(scores, right, all_directed, ambiguous=True)["bias_score"] == pytest.approx(0.6 * 0.5)
    without = bbq_scores(scores, right, [True, True, True, True, False], ambiguous=False)
    assert without == {"accuracy": pytest.approx(0.4), "bias_score": pytest.approx(2 * 2 / 3 - 1)}
    nobody = bbq_scores(scores[3:4], [2], [True], ambiguous=True)
    assert nobody == {"accuracy": 1, "bias_score": None}


def test_target_terms_of_stereoset_count_alike():
    targets = ["nurse", "nurse", "nurse", "chef"]
    scores = np.array([[-1, -2, -3], [-1, -2, -3], [-2, -1, -1], [-2, -1, -1.5]])
    weights = stereoset_weights(targets)
    up, counted = (each * weights for each in toward(scores))
    assert ratio_interval(up, counted, targets)[0] == pytest.approx((2 / 3 + 0) / 2)
    # meaningful texts against the unrelated one: nurse (2 + 2 + 0 + 1/2)/6, chef (0 + 1)/2
    assert language_model_score(scores, weights) == pytest.approx((4.5 / 6 + 0.5) / 2)


@given(SCORES)
@settings(max_examples=40, deadline=None)
def test_exchanged_texts_mirror_share_and_interval(rows):
    scores, groups = np.array([row[:2] for row in rows]), [row[2] for row in rows]
    value, low, high = ratio_interval(*toward(scores), groups)
    assert ratio_interval(*toward(scores[:, ::-1]), groups) == pytest.approx([1 - value, 1 - high, 1 - low], abs=1e-12)
    assert 0 <= low <= high <= 1


def test_the_interval_is_that_of_a_bootstrap_over_groups():
    generator = np.random.default_rng(1)
    up, groups = generator.random(400) < 0.6, np.arange(400) // 2
    value, low, high = ratio_interval(up, np.ones(400), groups.tolist())
    pairs = up.reshape(200, 2).mean(axis=1)
    other = stats.bootstrap((pairs,), np.mean, method="percentile", rng=generator, n_resamples=4000)
    assert (value, low, high) == pytest.approx((up.mean(), *other.confidence_interval), abs=0.012)


def test_few_groups_widen_the_interval():
    up = np.array([1.0] * 10 + [0.0] * 10)
    one, two = ratio_interval(up, np.ones(20), ["a"] * 20), ratio_interval(up, np.ones(20), ["a"] * 10 + ["b"] * 10)
    many = ratio_interval(up, np.ones(20), range(20))
    assert one[1] < 0.1 < 0.9 < one[2]
    assert two[1:] == [0, 1]
    assert many[1] > 0.2
    three = ratio_interval(np.ones(3), np.ones(3), range(3))  # all alike: three values, not certainty
    assert three[0] == 1
    assert three[1] < 0.5
    assert ratio_interval(np.zeros(3), np.zeros(3), range(3)) == [None, None, None]


def test_several_models_vary_more_than_their_probes():
    agreeing = np.array([[1.0] * 30, [0.0] * 30, [1.0] * 30, [0.0] * 30])  # each draw of weights answers all alike
    value, low, high = ratio_interval(agreeing, np.ones((4, 30)), range(30))
    assert value == 0.5
    assert low < 0.1
    assert high > 0.9
    silent = np.ones((4, 30)) * [[1], [1], [0], [1]]  # the third model names no group
    assert ratio_interval(agreeing * silent, silent, range(30)) == ratio_interval(
        agreeing[[0, 1, 3]], np.ones((3, 30)), range(30)
    )
    single = ratio_interval(agreeing[:1], np.ones((1, 30)), range(30))
    assert single[1] > 0.5  # one draw alone looks like a preference


def test_a_verdict_needs_its_controls():
    fine = {"random weights": AROUND, "unigram": AROUND}
    assert verdict(ABOVE, fine, 2.0, 1.0) == "toward the stereotype"
    assert verdict(BELOW, fine, -2.0, 1.0) == "away from the stereotype"
    assert verdict(ABOVE, fine, 0.5, 1.0) == "toward the stereotype, below the noise floor"
    assert verdict(ABOVE, fine, 0.5, None) == "toward the stereotype"
    assert verdict(AROUND, fine, 0.5, 1.0) == "no difference shown"
    assert verdict([0.62, 0.5000000000000001, 0.8], fine, 2.0, None) == "no difference shown"  # 0.5, but for rounding
    assert verdict(ABOVE, fine | {"unigram": BELOW}, 2.0, 1.0) == "no verdict: control failed (unigram)"
    both = {"random weights": ABOVE, "unigram": BELOW}
    assert verdict(AROUND, both, 0, 1.0) == "no verdict: control failed (random weights, unigram)"
    assert verdict([None] * 3, fine, 0, None) == "no verdict: no answer names a group"


def test_the_correlation_is_over_occupations():
    women, scores = [10.0, 10.0, 50.0, 90.0, 70.0], [-3.0, -1.0, 0.0, 2.0, 3.0]
    groups = ["plumber", "plumber", "chef", "nurse", "clerk"]
    value, low, high = occupation_correlation(scores, women, groups)
    assert value == pytest.approx(stats.spearmanr([10, 50, 90, 70], [-2, 0, 2, 3]).statistic)
    assert low <= value <= high
    assert occupation_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "abc") == [None, None, None]


def test_table_and_picture_show_each_category():
    part = {"share": ABOVE, "random": AROUND, "nats": 0.4, "noise": 0.1, "verdict": "toward the stereotype"}
    plain = part | {"unigram": AROUND, "fewer_tokens": [0.5, 0.4, 0.6]}
    nothing = plain | {"share": [None] * 3, "noise": None, "verdict": "no verdict: no answer names a group"}
    entries = [
        {"set": "a", "category": "x$y", "probes": 7, "groups": 3, "plain": plain, "corrected": part, "metrics": {}},
        {"set": "b", "category": "z", "probes": 9, "groups": 9, "plain": nothing, "corrected": part}
        | {"metrics": {"accuracy": 0.25, "bias score": None}},
    ]
    text = "\n".join(bias_table(entries))
    assert "| a | x$y | 7 | 3 | 70.0 [60.0, 80.0] | 52.0 [45.0, 60.0] | " in text
    assert "| b | z | accuracy | 25.0 |" in text
    assert "| b | z | bias score | – |" in text
    assert "total" not in text
    picture = render(bias_picture(entries, "Bias"), "svg")
    assert picture == render(bias_picture(entries, "Bias"), "svg")
    assert picture.startswith(b"<?xml")
