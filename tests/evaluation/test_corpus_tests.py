"""Paired tests of corpus metrics, against brute force, the tests of means, and the bootstrap of one seed."""

import itertools
import math

import numpy as np
import pytest

from decero.evaluation import METRICS, compute_metrics, paired_bootstrap, paired_permutation_test, two_way_bootstrap
from decero.evaluation.corpus_tests import corpus_bootstrap, corpus_difference, corpus_permutation_test, ratio
from decero.evaluation.examples import class_statistics, mean_statistics
from decero.evaluation.text_metrics import sufficient_statistics

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "past", "his", "old", "red", "door")


def translations(n, noise, seed):
    """n references, and copies of them in which a share of the words is another."""
    rng = np.random.default_rng(seed)
    references = [" ".join(np.random.default_rng(i).choice(WORDS, 9)) for i in range(n)]
    spoil = [[w if rng.random() > noise else rng.choice(WORDS) for w in line.split()] for line in references]
    return [" ".join(line) for line in spoil], references


def bleu_rows(n, noise, seeds):
    both = [sufficient_statistics("bleu", *translations(n, noise, seed)) for seed in seeds]
    return np.stack([rows for rows, _ in both]), both[0][1]


def noisy_rates(seed, S=3, N=83, gain=0.0):
    """Rows [nats, tokens] of S seeds by N texts of unequal length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 40, (1, N)).repeat(S, axis=0)
    return np.stack([tokens * (2 + gain + rng.normal(0, 0.3, (S, N))), tokens], axis=2).astype(float)


def test_swapping_examples_is_what_brute_force_gives():
    a, score = bleu_rows(7, 0.2, [1, 2])
    b, _ = bleu_rows(7, 0.25, [3, 4])

    def difference(swapped):
        each = [[(b if s else a)[k][n] for n, s in enumerate(swapped)] for k in range(2)]
        other = [[(a if s else b)[k][n] for n, s in enumerate(swapped)] for k in range(2)]
        return np.mean([score(np.sum(x, axis=0)) - score(np.sum(y, axis=0)) for x, y in zip(each, other, strict=True)])

    every = [difference(swapped) for swapped in itertools.product((0, 1), repeat=7)]
    expected = np.mean([abs(d) >= abs(every[0]) - 1e-9 for d in every])
    assert 2 / 128 < expected < 1, "pick other seeds: the test should not be trivial"
    assert corpus_permutation_test(a, b, score, seed=0) == expected
    assert corpus_permutation_test(b, a, score, seed=0) == expected


def test_random_swaps_come_near_the_exact_p():
    a, score = bleu_rows(11, 0.3, [1])
    b, _ = bleu_rows(11, 0.45, [3])
    exact = corpus_permutation_test(a, b, score, seed=0, n_resamples=2**11)
    drawn = corpus_permutation_test(a, b, score, seed=0, n_resamples=500)
    assert 0.02 < exact < 0.98
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 500))
    assert drawn != exact


def test_means_written_as_sums_give_what_the_tests_of_means_give():
    rng = np.random.default_rng(0)
    a, b = (rng.random((3, 97)) < share for share in (0.75, 0.6))
    rows = [np.stack([mean_statistics(row).rows for row in each]) for each in (a, b)]
    low, high = corpus_bootstrap(*rows, ratio, seed=0)
    expected = two_way_bootstrap(a, b, seed=1)
    assert (low, high) == pytest.approx(expected, abs=0.01)
    p = corpus_permutation_test(*rows, ratio, seed=0)
    assert p == pytest.approx(paired_permutation_test(a, b, seed=0), abs=0.02)
    assert corpus_difference(*rows, ratio) == pytest.approx(a.mean() - b.mean())


def test_one_seed_of_bleu_agrees_with_the_paired_bootstrap():
    (good, references), (bad, _) = translations(120, 0.2, 1), translations(120, 0.35, 2)
    expected = paired_bootstrap(good, bad, references, "bleu", num_resamples=4000)
    rows = [np.array(sufficient_statistics("bleu", text, references)[0])[None] for text in (good, bad)]
    score = sufficient_statistics("bleu", good, references)[1]
    low, high = corpus_bootstrap(*rows, score, seed=0, n_resamples=4000)
    width = expected.high - expected.low
    assert corpus_difference(*rows, score) == pytest.approx(expected.difference)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.1 * width)


def test_an_interval_of_rates_covers_the_true_difference():
    hits, rounds = 0, 120
    for i in range(rounds):
        rng = np.random.default_rng(i)
        a, b = noisy_rates(3 * i), noisy_rates(3 * i + 1, gain=0.1)
        b[..., 1] = a[..., 1]
        b[..., 0] = a[..., 1] * (2.1 + rng.normal(0, 0.3, a.shape[:2]))
        a[..., 0] += a[..., 1] * rng.normal(0, 0.05, (3, 1))  # luck of training
        low, high = corpus_bootstrap(a, b, ratio, seed=i, n_resamples=300)
        hits += low <= -0.1 <= high
    assert hits / rounds > 0.9
    assert hits < rounds, "an interval that is never wrong is too wide to say anything"


def test_equal_systems_have_p_one_and_no_difference():
    a = noisy_rates(0)
    assert corpus_permutation_test(a, a, ratio, seed=0) == 1.0
    assert corpus_bootstrap(a, a, ratio, seed=0, n_resamples=50) == (0.0, 0.0)
    with pytest.raises(ValueError, match="pair up"):
        corpus_bootstrap(a, a[:, 1:], ratio, seed=0)


@pytest.mark.parametrize("problem_type", METRICS)
def test_sums_of_rows_give_the_metric_itself(problem_type):
    rng = np.random.default_rng(3)
    if problem_type == "regression":
        references = rng.normal(size=53)
        predictions = references + rng.normal(0, 0.4, 53)
    elif problem_type == "multi_label_classification":
        references, predictions = (rng.random((2, 53, 4)) < 0.4).astype(int)
    else:
        references, predictions = rng.integers(0, 4, (2, 53))  # of 5 classes: one occurs nowhere
    expected = compute_metrics(problem_type, predictions, references)
    for metric in expected.keys() - {"spearman"}:
        rows, score = class_statistics(problem_type, metric, predictions, references, 5)
        assert len(rows) == 53
        assert float(score(rows.sum(axis=0))) == pytest.approx(expected[metric], abs=1e-12), metric
