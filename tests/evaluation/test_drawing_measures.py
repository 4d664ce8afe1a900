"""Measures of drawings against hand computations, another library and brute force."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.evaluation.drawing_measures import BLOCK, frechet_distance, nearest_rows, shares


def by_scipy(first, second):
    """FID as it is usually written: with the root of a matrix that is not symmetric."""
    apart = first.mean(axis=0) - second.mean(axis=0)
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    return float(apart @ apart + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real))


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(83, 7)) @ rng.normal(size=(7, 7))
    second = rng.normal(size=(61, 7)) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    assert frechet_distance(first, second) == pytest.approx(by_scipy(first, second), rel=1e-6)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_one_feature_by_hand():
    # means 1 and 5, standard deviations sqrt(2) and sqrt(8): 4² + (sqrt(8) - sqrt(2))² = 18
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [7.0]])) == pytest.approx(18)


def test_more_features_than_rows_still_give_a_distance():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 11)), rng.normal(size=(4, 11))
    assert np.isfinite(frechet_distance(first, second))
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(first[:1], second)


@given(st.integers(0, 2**32 - 1), st.integers(1, 13), st.integers(1, 17))
@settings(max_examples=20, deadline=None)
def test_nearest_rows_are_those_of_brute_force(seed, wanted, known):
    rng = np.random.default_rng(seed)
    drawn, train = (rng.integers(0, 256, (size, 5), dtype=np.uint8) for size in (wanted, known))
    rows, distances = nearest_rows(drawn, train)
    every = np.sqrt(((drawn[:, None].astype(float) - train[None].astype(float)) ** 2).mean(axis=2))
    assert distances == pytest.approx(every.min(axis=1))
    assert every[np.arange(wanted), rows] == pytest.approx(every.min(axis=1))


def test_a_copy_has_no_distance_in_any_block():
    train = np.random.default_rng(0).integers(0, 256, (BLOCK + 7, 11), dtype=np.uint8)
    rows, distances = nearest_rows(train, train)
    assert rows.tolist() == list(range(BLOCK + 7))
    assert distances.max() == 0


def test_shares_count_classes_that_were_never_drawn():
    assert shares(np.array([2, 0, 2, 2]), 4) == [0.25, 0.0, 0.75, 0.0]
