"""The points of a tuning: a grid over settings, or some of it drawn by the seed; the same ones for every contender."""

import itertools
from typing import Any

import numpy as np

from decero.config.comparison import Compare


def points(comparison: Compare) -> list[dict[str, Any]]:
    """`{"optim.learning_rate": 1e-3, ...}` of every trial; none where nothing is tuned."""
    if not comparison.tune:
        return []
    grid = [dict(zip(comparison.tune, values, strict=True)) for values in itertools.product(*comparison.tune.values())]
    if comparison.trials is None or comparison.trials == len(grid):
        return grid
    drawn = np.random.default_rng(comparison.seed).permutation(len(grid))[: comparison.trials]
    return [grid[place] for place in sorted(drawn)]
