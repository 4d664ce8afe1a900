"""Expected best validation scores against brute force."""

import itertools
import math

import numpy as np
import pytest

from decero.evaluation.tuning_curve import Tuning, expected_best

SCORES = [0.31, 0.74, 0.74, 0.22]


def test_the_expected_best_is_what_brute_force_gives():
    for n, found in enumerate(expected_best(SCORES), start=1):
        every = [max(draw) for draw in itertools.product(SCORES, repeat=n)]
        assert found == pytest.approx(np.mean(every))
    losses = [1.9, 0.4, 2.2]
    for n, found in enumerate(expected_best(losses, higher_is_better=False), start=1):
        assert found == pytest.approx(np.mean([min(draw) for draw in itertools.product(losses, repeat=n)]))
    assert expected_best([]) == []


def test_the_best_trial_is_chosen_and_a_failed_one_is_not():
    tried = (({"lr": 1}, 0.5), ({"lr": 2}, None), ({"lr": 3}, 0.2), ({"lr": 4}, 0.2))
    assert Tuning("a", None, "accuracy", True, tried).chosen == {"lr": 1}
    down = Tuning("a", None, "loss", False, tried)
    assert (down.chosen, down.best, len(down.expected)) == ({"lr": 3}, 0.2, 3)
    nothing = Tuning("a", None, "loss", False, (({"lr": 1}, None),))
    assert nothing.chosen is None
    assert math.isnan(nothing.best)
