"""The points of a tuning grid, or a random part of it. Every contender gets the same number of points."""

import itertools
from typing import Any

import numpy as np

from decero.config.comparison import Compare


def points(comparison: Compare, contender: str | None = None) -> list[dict[str, Any]]:
    """Return the settings of every trial, such as `{"optim.learning_rate": 1e-3}`; an empty list without tuning.

    contender: replaces values of the grid by its own.
    """
    if not comparison.tune:
        return []
    tuned = comparison.tune | (comparison.contenders[contender].tune if contender else {})
    grid = [dict(zip(tuned, values, strict=True)) for values in itertools.product(*tuned.values())]
    if comparison.trials is None or comparison.trials == len(grid):
        return grid
    drawn = np.random.default_rng(comparison.seed).permutation(len(grid))[: comparison.trials]
    return [grid[place] for place in sorted(drawn)]
