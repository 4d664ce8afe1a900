"""What one test example adds to a metric of classification or regression: the rows that the paired tests draw."""

from typing import Any, NamedTuple

import numpy as np

from decero.evaluation.corpus_tests import Score, ratio
from decero.evaluation.metrics import example_scores


class ExampleStatistics(NamedTuple):
    """rows: K numbers an example, (N, K). score_of_sum: the metric of the summed rows (K,)."""

    rows: np.ndarray
    score_of_sum: Score


def mean_statistics(values_N) -> ExampleStatistics:
    """Of a metric that is the mean of one value an example."""
    values_N = np.asarray(values_N, dtype=np.float64)
    return ExampleStatistics(np.stack([values_N, np.ones_like(values_N)], axis=1), ratio)


def class_statistics(problem_type: str, metric: str, predictions, references, num_labels: int) -> ExampleStatistics:
    """The rows of any metric of METRICS[problem_type].

    spearman is a function of ranks, which do not add up: its rows hold minus the squared error, as the verdict says.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if metric == "mse":
        return mean_statistics(-example_scores(problem_type, predictions, references))
    if metric == "mae":
        return mean_statistics(np.abs(predictions - references))
    if metric == "exact_match":
        return mean_statistics((predictions == references).all(axis=1))
    if metric == "pearson":
        x, y = predictions.astype(np.float64), references.astype(np.float64)
        return ExampleStatistics(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1), _pearson)
    if metric in ("f1_micro", "f1_macro", "matthews_correlation"):
        said, true = (_indicators(each, num_labels) for each in (predictions, references))
        if metric == "matthews_correlation":
            return ExampleStatistics(np.concatenate([(said * true).sum(axis=1, keepdims=True), said, true], 1), _mcc)
        counts = np.concatenate([said * true, said, true], axis=1)
        return ExampleStatistics(counts, _f1_micro if metric == "f1_micro" else macro_f1)
    return mean_statistics(example_scores(problem_type, predictions, references))


def _indicators(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """0/1, float64 (N, labels)."""
    return (labels if labels.ndim == 2 else np.eye(num_labels)[labels]).astype(np.float64)


def _f1_micro(sum_K: np.ndarray) -> float:
    right, said, true = sum_K.reshape(3, -1).sum(axis=1)
    return float(2 * right / (said + true)) if said + true else 0.0


def macro_f1(sum_K: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur among predictions or references.

    sum_K: right predictions of each class, then all predictions of each class, then all references of each class.
    """
    right, said, true = sum_K.reshape(3, -1)
    occurs = said + true > 0
    return float((2 * right[occurs] / (said + true)[occurs]).mean()) if occurs.any() else 0.0


def _mcc(sum_K: np.ndarray) -> float:
    """Matthews correlation of several classes (Gorodkin 2004); 0 where it would be 0/0."""
    right, (said, true) = sum_K[0], sum_K[1:].reshape(2, -1)
    total = true.sum()
    spread = (total**2 - said @ said) * (total**2 - true @ true)
    return float((right * total - said @ true) / np.sqrt(spread)) if spread > 0 else 0.0


def _pearson(sum_K: Any) -> float:
    n, x, y, xx, yy, xy = sum_K
    spread = (n * xx - x * x) * (n * yy - y * y)
    return float((n * xy - x * y) / np.sqrt(spread)) if spread > 0 else 0.0
