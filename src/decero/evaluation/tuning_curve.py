"""The expected best validation score as a function of the number of trials (Dodge et al. 2019)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tuning:
    """The trials of one contender at one label budget.

    metric: a metric of the validation split. tried: the values and the score of each trial; None for a failed one.
    fold: of a cross-validation, where each fold is tuned alone.
    """

    contender: str
    budget: int | None
    metric: str
    higher_is_better: bool
    tried: tuple[tuple[dict[str, Any], float | None], ...]
    fold: int | None = None

    @property
    def scores(self) -> list[float]:
        return [score for _, score in self.tried if score is not None]

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The values of the best trial (the first, if several are equal); None if every trial failed."""
        best = max if self.higher_is_better else min
        ok = [(values, score) for values, score in self.tried if score is not None]
        return best(ok, key=lambda each: each[1])[0] if ok else None

    @property
    def best(self) -> float:
        """The score of the chosen trial; NaN if every trial failed."""
        scores = self.scores
        return (max(scores) if self.higher_is_better else min(scores)) if scores else math.nan

    @property
    def expected(self) -> list[float]:
        return expected_best(self.scores, self.higher_is_better)

    def record(self) -> dict[str, Any]:
        """Return the tuning as it stands in result.json."""
        trials = [values | {"score": score} for values, score in self.tried]
        facts = {"contender": self.contender, "budget": self.budget, "metric": self.metric, "trials": trials}
        facts |= {} if self.fold is None else {"fold": self.fold}
        return facts | {"chosen": self.chosen, "expected_best": self.expected}


def expected_best(scores: Sequence[float], higher_is_better: bool = True) -> list[float]:
    """Return the expected best score of n = 1, 2, ... trials, drawn with replacement from those that were made.

    E[max of n] = sum over scores v of v * (P(V <= v)^n - P(V < v)^n), P their empirical distribution:
    Dodge et al. 2019 (EMNLP, Show Your Work, section 3.1, eqs. 7 and 8).
    """
    sign = 1 if higher_is_better else -1
    v_B = np.sort(sign * np.asarray(list(scores), dtype=np.float64))
    B = len(v_B)
    up_to_B = np.arange(1, B + 1) / B
    return [float(sign * (v_B * (up_to_B**n - (up_to_B - 1 / B) ** n)).sum()) for n in range(1, B + 1)]


def values_text(values: dict[str, Any] | None) -> str:
    """`optim.learning_rate 0.001, training.max_train_steps 50`."""
    return ", ".join(f"{key} {value}" for key, value in values.items()) if values else "none: every trial failed"
