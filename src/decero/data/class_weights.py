"""Weights of classes in the loss, for data in which some classes are rare."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from decero.errors import UserError, did_you_mean

ClassWeights = Literal["balanced"] | dict[str, float]


def class_weights(choice: ClassWeights, labels: Sequence, names: Sequence[str], problem_type: str) -> np.ndarray:
    """Return a weight for each label, float64 (labels,).

    labels: of train, ids (N,) or 0/1 (N, labels).
    balanced: with one label, N / (K n) for a class of n of the N examples and K classes (King & Zeng 2001), so that
        classes weigh the same in sum. With several labels, (N - n) / n for the positive examples of a label, so that
        they weigh as much as its negative ones, which have weight 1.
    A mapping gives the weights of the labels that it names; the others have 1.

    Raises UserError for a label that train does not have.
    """
    weights = np.ones(len(names))
    if isinstance(choice, dict):
        for name, weight in choice.items():
            if name not in names:
                near = did_you_mean(name, names) or f"; labels of train: {', '.join(names[:20])}"
                raise UserError(f"objective.class_weights: label {name!r} is not in train{near}")
            weights[names.index(name)] = weight
        return weights
    several, found = problem_type == "multi_label_classification", np.asarray(labels)
    count_K = found.sum(axis=0) if several else np.bincount(found, minlength=len(names))
    others_K = len(found) - count_K
    balanced = (others_K if several else len(found) / np.count_nonzero(count_K)) / np.maximum(count_K, 1)
    return np.where((count_K > 0) & ((others_K > 0) | (not several)), balanced, weights)
