"""Compute predictions and metrics from logits, for the three problem types of transformers' classifiers.

Hugging Face `evaluate` computes the numbers with local modules (`metric_modules/NAME/NAME.py`), so nothing is
downloaded: `evaluate.load("accuracy")` would contact the hub.
"""

import functools
import math
import os
from pathlib import Path

import numpy as np

from decero.errors import UserError, did_you_mean

METRICS = {
    "single_label_classification": ("accuracy", "f1_macro", "matthews_correlation"),
    "multi_label_classification": ("f1_micro", "f1_macro", "exact_match", "label_accuracy"),
    "regression": ("mse", "mae", "pearson", "spearman"),
}
# For regression, mse: the paired tests compare the squared error. A correlation ignores the scale of predictions.
MAIN_METRIC = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "mse",
}
LOWER_IS_BETTER = ("loss", "mse", "mae", "eval_loss", "perplexity", "bits_per_byte", "detection_loss")
OTHERS = (
    "loss", "eval_loss", "perplexity", "bits_per_byte", "eval_accuracy", "source_gain", "detection_loss",
    "detection_accuracy",
)  # fmt: skip
HIGHER_IS_BETTER = {name: name not in LOWER_IS_BETTER for names in (*METRICS.values(), OTHERS) for name in names}


def higher_is_better(metric: str) -> bool:
    """The direction of any metric of this package; of a part's, too, such as `help_bleu`."""
    if metric in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[metric]
    return not any(metric.endswith(f"_{name}") for name in LOWER_IS_BETTER)


def predict(problem_type: str, logits, threshold: float = 0.5) -> np.ndarray:
    """Turn logits (N, labels) into predictions.

    single label: the class with the largest logit, int (N,); of two classes, the second one where its probability is
    above the threshold.
    multi label: 1 where the probability is above the threshold, int (N, labels).
    regression: the value, float (N,).

    Raises UserError for an unknown problem type and for NaN logits (argmax would return class 0); ValueError for a
    wrong shape.
    """
    _check(problem_type)
    logits = np.asarray(logits)
    if np.isnan(logits).any():
        raise UserError("the model's logits are NaN: the run diverged; lower optim.learning_rate")
    if problem_type == "regression":
        if logits.ndim == 2 and logits.shape[1] == 1:
            logits = logits[:, 0]
        if logits.ndim != 1:
            raise ValueError(f"regression needs one number per example, not logits of shape {logits.shape}")
        return logits.astype(np.float64)
    if logits.ndim != 2:
        raise ValueError(f"{problem_type} needs logits of shape (N, labels), not {logits.shape}")
    least = math.log(threshold / (1 - threshold))  # 0 for 0.5
    if problem_type == "multi_label_classification":
        return (logits > least).astype(np.int64)
    return logits.argmax(axis=1) if logits.shape[1] != 2 else (logits[:, 1] - logits[:, 0] > least).astype(np.int64)


def compute_metrics(problem_type: str, predictions, references) -> dict[str, float]:
    """Compute all metrics of METRICS[problem_type] over the N examples.

    predictions, references: class ids (N,), 0/1 (N, labels) or floats (N,).
    Macro F1 is over the classes that occur in predictions or references. F1, MCC and correlations are 0 where they
    would be 0/0, for example for a constant prediction.
    Raises UserError for an unknown problem type; ValueError for different shapes or no examples.
    """
    predictions, references = _pair(problem_type, predictions, references)
    return _module(problem_type).compute(predictions=predictions, references=references)


def example_scores(problem_type: str, predictions, references) -> np.ndarray:
    """Return the score of each test example for the paired tests, float64 (N,); higher is better.

    single label: 1 if right, else 0. multi label: the share of right labels. regression: minus the squared error. The
    means are accuracy, label_accuracy and -mse. Raises as `compute_metrics`.
    """
    predictions, references = _pair(problem_type, predictions, references)
    if problem_type == "regression":
        return -((predictions - references) ** 2)
    right = (predictions == references).astype(np.float64)
    return right if right.ndim == 1 else right.mean(axis=1)


@functools.cache
def _module(problem_type: str):
    import evaluate  # takes 2 s (it imports `datasets`), so import it only when needed

    folder = Path(__file__).parent / "metric_modules" / problem_type
    # In memory and with this process's own id: parallel runs must not share evaluate's cache and lock files.
    return evaluate.load(str(folder), keep_in_memory=True, experiment_id=f"decero-{os.getpid()}")


def _check(problem_type: str) -> None:
    if problem_type not in METRICS:
        near = did_you_mean(problem_type, METRICS)
        raise UserError(f"unknown problem type {problem_type!r}{near}  (all: {', '.join(METRICS)})")


def _pair(problem_type: str, predictions, references) -> tuple[np.ndarray, np.ndarray]:
    _check(problem_type)
    dtype = np.float64 if problem_type == "regression" else np.int64
    predictions, references = np.asarray(predictions), np.asarray(references)
    ndim = 2 if problem_type == "multi_label_classification" else 1
    if predictions.shape != references.shape or predictions.ndim != ndim or not predictions.size:
        raise ValueError(
            f"{problem_type} needs predictions and references of the same non-empty {ndim}-d shape, "
            f"not {predictions.shape} and {references.shape}"
        )
    return predictions.astype(dtype), references.astype(dtype)
