"""The paired bootstrap: symmetric, no false alarm for equal systems, significant for a clear winner."""

import math

import numpy as np
import pytest
import sacrebleu

from decero.errors import UserError
from decero.evaluation import TEXT_METRICS, paired_bootstrap

NAMES = [name for names in TEXT_METRICS.values() for name in names]
WORDS = ["uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez", "once", "doce"]


def references(n, rng):
    return [" ".join(rng.choice(WORDS, 9)) for _ in range(n)]


def garbled(texts, share, rng):
    """Replace each word by another with this probability; every fifth sentence stays unchanged."""
    return [
        text if i % 5 == 0 else " ".join(w if rng.random() > share else str(rng.choice(WORDS)) for w in text.split())
        for i, text in enumerate(texts)
    ]


def systems(share_a, share_b, n=53, seed=0):
    rng = np.random.default_rng(seed)
    texts = references(n, rng)
    return garbled(texts, share_a, rng), garbled(texts, share_b, rng), texts


@pytest.mark.parametrize("metric", NAMES)
def test_a_clearly_better_system_is_significant_either_way(metric):
    a, b, texts = systems(0.05, 0.5)
    found = paired_bootstrap(a, b, texts, metric=metric, num_resamples=400)
    assert 0 < found.low < found.difference < found.high
    assert found.p == pytest.approx(2 / 401)
    mirrored = paired_bootstrap(b, a, texts, metric=metric, num_resamples=400)
    assert mirrored == (-found.difference, -found.high, -found.low, found.p)


@pytest.mark.parametrize("metric", NAMES)
def test_identical_systems_have_no_difference(metric):
    a, _, texts = systems(0.3, 0.3)
    assert paired_bootstrap(a, a, texts, metric=metric, num_resamples=100) == (0.0, 0.0, 0.0, 1.0)


def test_equally_good_systems_are_not_significant():
    a, b, texts = systems(0.3, 0.3)
    found = paired_bootstrap(a, b, texts)
    assert found.low < 0 < found.high
    assert found.p > 0.1


def test_difference_and_interval_match_sacrebleu_and_resampling():
    a, b, texts = systems(0.2, 0.3, n=31)
    found = paired_bootstrap(a, b, texts, metric="bleu")

    def difference(chosen):
        refs = [[texts[i] for i in chosen]]
        score_a, score_b = (sacrebleu.corpus_bleu([x[i] for i in chosen], refs).score for x in (a, b))
        return score_a - score_b

    assert found.difference == pytest.approx(difference(range(len(texts))))
    rng = np.random.default_rng(1)
    drawn = [difference(rng.integers(0, len(texts), len(texts))) for _ in range(200)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    noise = 5 * np.std(drawn) * math.sqrt(0.025 * 0.975 / 200) / 0.0584  # five times the error of such a percentile
    assert (found.low, found.high) == pytest.approx((low, high), abs=noise)


def test_the_result_depends_only_on_the_seed(monkeypatch):
    a, b, texts = systems(0.2, 0.3)
    found = paired_bootstrap(a, b, texts, seed=3)
    monkeypatch.setenv("SACREBLEU_SEED", "77")
    np.random.seed(1)
    assert paired_bootstrap(a, b, texts, seed=3) == found
    other = paired_bootstrap(a, b, texts, seed=4)
    assert other.difference == found.difference
    assert (other.low, other.high) != (found.low, found.high)


@pytest.mark.long
def test_the_false_alarm_rate_is_five_percent():
    rng, alarms, rounds = np.random.default_rng(0), 0, 300
    for i in range(rounds):
        a, b = (["x" if right else "y" for right in rng.random(61) < 0.6] for _ in range(2))
        found = paired_bootstrap(a, b, ["x"] * 61, metric="exact_match", num_resamples=200, seed=i)
        alarms += found.p <= 0.05
        if not 0.04 < found.p <= 0.06:  # p has one resample more in it
            assert (found.p > 0.05) == (found.low <= 0 <= found.high), "p and the interval tell different stories"
    assert abs(alarms / rounds - 0.05) < 4 * math.sqrt(0.05 * 0.95 / rounds)


def test_invalid_arguments_are_refused():
    a, b, texts = systems(0.2, 0.3, n=5)
    with pytest.raises(ValueError, match="pair up"):
        paired_bootstrap(a[1:], b, texts)
    with pytest.raises(ValueError, match="2 examples"):
        paired_bootstrap(a[:1], b[:1], texts[:1])
    with pytest.raises(ValueError, match="40 resamples"):
        paired_bootstrap(a, b, texts, num_resamples=39)
    with pytest.raises(UserError, match="did you mean chrf"):
        paired_bootstrap(a, b, texts, metric="chrF2")
