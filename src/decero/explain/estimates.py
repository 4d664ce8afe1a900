"""A mean over texts with its interval, as the pages of `explain` print it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decero.evaluation.statistics import two_way_bootstrap

MIN_TEXTS = 5  # with fewer, an interval says more about its own luck than about the texts
RESAMPLES = 2000


@dataclass(frozen=True)
class TextMean:
    """Hold the mean of one number a text, and its 95 % bootstrap interval over texts.

    low, high: None with fewer than MIN_TEXTS texts. mean: NaN without texts.
    """

    mean: float
    low: float | None
    high: float | None
    texts: int

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.mean:.2f}{interval}"


def estimate(values_N: Sequence[float] | np.ndarray, *, within: tuple[float, float] | None = None) -> TextMean:
    """TextMean the mean over texts, with an interval if there are at least MIN_TEXTS of them.

    values_N: one number a text. within: the range of the number, which cuts the interval: (-1, 1) of a correlation.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if len(values_N) < MIN_TEXTS:
        return TextMean(float(values_N.mean()) if len(values_N) else float("nan"), None, None, len(values_N))
    low, high = two_way_bootstrap([values_N], [np.zeros_like(values_N)], seed=0, n_resamples=RESAMPLES)
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return TextMean(float(values_N.mean()), low, high, len(values_N))
