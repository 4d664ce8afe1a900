"""From logits to predictions to metrics, for the three problem types of transformers' sequence classifiers.

The numbers come from Hugging Face `evaluate`, whose modules lie next to this file (`metric_modules/NAME/NAME.py`), so
that nothing is fetched: `evaluate.load("accuracy")` would ask the hub.
"""

import functools
import os
from pathlib import Path

import numpy as np

from decero.errors import UserError, did_you_mean

METRICS = {
    "single_label_classification": ("accuracy", "f1_macro", "matthews_correlation"),
    "multi_label_classification": ("f1_micro", "f1_macro", "exact_match", "label_accuracy"),
    "regression": ("mse", "mae", "pearson", "spearman"),
}
# For regression the squared error, because that is what the paired tests compare; a correlation is blind to scale.
MAIN_METRIC = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "mse",
}
LOWER_IS_BETTER = ("loss", "mse", "mae", "eval_loss", "perplexity", "bits_per_byte")
OTHERS = ("loss", "eval_loss", "perplexity", "bits_per_byte", "eval_accuracy", "source_gain")
HIGHER_IS_BETTER = {name: name not in LOWER_IS_BETTER for names in (*METRICS.values(), OTHERS) for name in names}


def higher_is_better(metric: str) -> bool:
    """The direction of any metric of this package; of a part's, too, such as `help_bleu`."""
    if metric in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[metric]
    return not any(metric.endswith(f"_{name}") for name in LOWER_IS_BETTER)


def predict(problem_type: str, logits) -> np.ndarray:
    """Logits (N, labels) to predictions: the largest, int (N,); those above 0, 0/1 int (N, labels); the value, (N,).

    Raises UserError for an unknown problem type and for logits that are NaN (argmax would call them class 0);
    ValueError for a shape that does not fit.
    """
    _check(problem_type)
    logits = np.asarray(logits)
    if np.isnan(logits).any():
        raise UserError("the model's logits are NaN: the run diverged; lower optim.learning_rate")
    if problem_type == "regression":
        if logits.ndim == 2 and logits.shape[1] == 1:
            logits = logits[:, 0]
        if logits.ndim != 1:
            raise ValueError(f"regression takes one number an example, not logits of shape {logits.shape}")
        return logits.astype(np.float64)
    if logits.ndim != 2:
        raise ValueError(f"{problem_type} takes logits of shape (N, labels), not {logits.shape}")
    return logits.argmax(axis=1) if problem_type == "single_label_classification" else (logits > 0).astype(np.int64)


def compute_metrics(problem_type: str, predictions, references) -> dict[str, float]:
    """All metrics of METRICS[problem_type] over the N examples.

    predictions, references: class ids (N,), 0/1 (N, labels) or floats (N,). Macro F1 runs over the classes that occur
    in either; F1 and MCC are 0 where they would be 0/0; so are the correlations of a constant prediction.
    Raises UserError for an unknown problem type, ValueError for shapes that differ or for no examples.
    """
    predictions, references = _pair(problem_type, predictions, references)
    return _module(problem_type).compute(predictions=predictions, references=references)


def example_scores(problem_type: str, predictions, references) -> np.ndarray:
    """What one test example adds to the score that the paired tests compare, float64 (N,); higher is better.

    1 or 0 for right or wrong; the share of its labels that are right; minus its squared error. Their mean is
    accuracy, label_accuracy and -mse. Raises as compute_metrics does.
    """
    predictions, references = _pair(problem_type, predictions, references)
    if problem_type == "regression":
        return -((predictions - references) ** 2)
    right = (predictions == references).astype(np.float64)
    return right if right.ndim == 1 else right.mean(axis=1)


@functools.cache
def _module(problem_type: str):
    import evaluate  # brings `datasets` along, 2 s: only those who score pay for it

    folder = Path(__file__).parent / "metric_modules" / problem_type
    # In memory and under this process's own name: two runs at once must not meet on evaluate's cache and lock files.
    return evaluate.load(str(folder), keep_in_memory=True, experiment_id=f"decero-{os.getpid()}")


def _check(problem_type: str) -> None:
    if problem_type not in METRICS:
        near = did_you_mean(problem_type, METRICS)
        raise UserError(f"{problem_type!r} is no problem type{near}  (all: {', '.join(METRICS)})")


def _pair(problem_type: str, predictions, references) -> tuple[np.ndarray, np.ndarray]:
    _check(problem_type)
    dtype = np.float64 if problem_type == "regression" else np.int64
    predictions, references = np.asarray(predictions), np.asarray(references)
    ndim = 2 if problem_type == "multi_label_classification" else 1
    if predictions.shape != references.shape or predictions.ndim != ndim or not predictions.size:
        raise ValueError(
            f"{problem_type} takes predictions and references of one and the same non-empty {ndim}-d shape, "
            f"not {predictions.shape} and {references.shape}"
        )
    return predictions.astype(dtype), references.astype(dtype)
