"""Tests and intervals: correct by hand, correct on average, symmetric."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.evaluation import holm, mean_and_sd, paired_permutation_test, two_way_bootstrap

SEEDS, EXAMPLES = 3, 11


def pair(seed, gain=0.0, shape=(SEEDS, EXAMPLES)):
    """0/1 scores of two systems with the same hard examples; the first is right more often by `gain`."""
    rng = np.random.default_rng(seed)
    ease = rng.uniform(0.2, 0.7, shape[1])
    return (rng.random(shape) < ease + gain).astype(float), (rng.random(shape) < ease).astype(float)


def test_mean_and_sd_of_several_of_one_and_of_none():
    assert mean_and_sd([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7)))
    assert mean_and_sd(x for x in [4.0])[0] == 4.0
    assert math.isnan(mean_and_sd([4.0])[1])
    assert all(map(math.isnan, mean_and_sd([])))


def test_few_differences_are_tested_exactly():
    a, b = np.zeros((1, 9)), np.zeros((1, 9))
    a[0, :5] = 1  # five wins, no loss, four ties: 2 of the 2^5 sign patterns are this extreme
    assert paired_permutation_test(a, b, seed=0) == pytest.approx(2 / 32)


def test_a_large_sample_agrees_with_the_paired_t_test():
    a, b = pair(1, 0.05, (1, 701))
    expected = scipy.stats.ttest_rel(a[0], b[0]).pvalue
    assert 0.01 < expected < 0.9, "pick another seed: the comparison should not be trivial"
    assert paired_permutation_test(a, b, seed=0) == pytest.approx(expected, abs=0.03)


def test_p_is_uniform_under_the_null_and_tiny_for_a_clear_gap():
    p = np.array([paired_permutation_test(*pair(s, shape=(2, 67)), seed=s, n_resamples=300) for s in range(300)])
    for level in (0.05, 0.25, 0.5):
        assert abs((p <= level).mean() - level) < 4 * math.sqrt(level * (1 - level) / len(p)) + 0.01
    clear, dull = np.ones((SEEDS, 20)), np.zeros((SEEDS, 20))
    assert paired_permutation_test(clear, dull, seed=0) < 0.001


def test_identical_systems_give_p_one_and_an_interval_of_zero():
    a, _ = pair(0)
    assert paired_permutation_test(a, a, seed=0) == 1.0
    assert two_way_bootstrap(a, a, seed=0) == (0.0, 0.0)


@pytest.mark.parametrize(("training_luck", "test_luck"), [(0.3, 0.5), (0.01, 1.0)], ids=["training", "test"])
def test_the_interval_covers_the_true_difference(training_luck, test_luck):
    rng, hits, truth, rounds = np.random.default_rng(0), 0, 0.3, 200
    for i in range(rounds):
        a = truth + training_luck * rng.normal(size=(SEEDS, 1)) + test_luck * rng.normal(size=101)
        low, high = two_way_bootstrap(a, np.zeros_like(a), seed=i, n_resamples=200)
        hits += low <= truth <= high
    assert 0.90 <= hits / rounds <= 0.99


def test_seeds_that_disagree_widen_the_interval():
    agree, disagree = np.zeros((2, SEEDS, 40))
    agree[:, :20] = 1
    for seed, right in enumerate((5, 20, 35)):  # the same mean
        disagree[seed, :right] = 1
    baseline = np.full((SEEDS, 40), 0.25)
    width = {name: np.ptp(two_way_bootstrap(a, baseline, 0)) for name, a in (("a", agree), ("d", disagree))}
    assert width["d"] > 2 * width["a"]


def test_one_seed_gives_the_interval_over_examples():
    a, b = pair(2, 0.1, (1, 401))
    low, high = two_way_bootstrap(a, b, seed=0)
    expected = scipy.stats.ttest_rel(a[0], b[0]).confidence_interval()
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_chunks_and_repeated_patterns_change_nothing_but_speed():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(SEEDS, 2001))  # no two examples alike: several chunks
    low, high = two_way_bootstrap(a, 0 * a, seed=0, n_resamples=2500)
    luck = a.mean(axis=0).var(ddof=1) / 2001
    assert (low + high) / 2 == pytest.approx(a.mean())
    assert 1.96 * math.sqrt(luck) < high - a.mean() < 4.5 * math.sqrt(3 * luck)


scores = st.lists(st.lists(st.integers(0, 4), min_size=EXAMPLES, max_size=EXAMPLES), min_size=1, max_size=SEEDS)


@settings(max_examples=25, deadline=None)
@given(a=scores, seed=st.integers(0, 99))
def test_swapping_the_systems_keeps_p_and_mirrors_the_interval(a, seed):
    a = np.array(a) / 4
    b = np.random.default_rng(seed).integers(0, 5, a.shape) / 4
    assert paired_permutation_test(a, b, seed, 200) == pytest.approx(paired_permutation_test(b, a, seed, 200))
    low, high = two_way_bootstrap(a, b, seed, 200)
    assert two_way_bootstrap(b, a, seed, 200) == pytest.approx((-high, -low))
    assert low <= (a - b).mean() + 1e-12
    assert high >= (a - b).mean() - 1e-12


def test_holm_by_hand():
    # sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, never falling: 0.02 0.03 0.06 0.06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1.0, 1.0])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("function", [paired_permutation_test, two_way_bootstrap])
def test_scores_that_do_not_pair_up_are_refused(function):
    a, b = pair(0)
    for bad in (a[:, 1:], a[0], np.full_like(a, np.nan)):
        with pytest.raises(ValueError, match="scores must"):
            function(bad, b, seed=0)
    with pytest.raises(ValueError, match="at least two"):
        two_way_bootstrap(a[:, :1], b[:, :1], seed=0)


def test_a_single_differing_example_shows_nothing():
    a = np.ones((1, 7))
    b = a.copy()
    b[0, 3] = 0
    assert paired_permutation_test(a, b, seed=0) == 1.0
