"""Choose the probability above which a label is predicted."""

from typing import Any

import numpy as np
from scipy.special import expit

from decero.evaluation.examples import class_statistics
from decero.evaluation.metrics import MAIN_METRIC, predict

# Evenly spaced in log-odds, because the probabilities of rare labels are close to 0.
THRESHOLDS = tuple(float(t) for t in np.round(expit(np.linspace(-7, 7, 141)), 4))


def choose_threshold(problem_type: str, logits: Any, references: Any) -> float:
    """Return the threshold with the best main metric on these rows; of equal ones, the nearest to 0.5.

    logits: (N, labels), two of them for a single label. references: class ids (N,), or 0/1 (N, labels).
    """
    metric, references = MAIN_METRIC[problem_type], np.asarray(references).astype(np.int64)

    def score(threshold: float) -> float:
        rows, score_of_sum = class_statistics(
            problem_type, metric, predict(problem_type, logits, threshold), references, np.shape(logits)[1]
        )
        return score_of_sum(rows.sum(axis=0))

    return max(THRESHOLDS, key=lambda threshold: (round(score(threshold), 12), -abs(threshold - 0.5)))
