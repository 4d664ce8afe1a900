"""Mean intersection over union of classes of pixels, from counts that are pooled over all pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from decero.evaluation.examples import ExampleStatistics

PIXEL_METRICS = ("mean_iou", "pixel_accuracy")


def pixel_counts(predictions, references, num_labels: int, ignored: int | None = None) -> np.ndarray:
    """Return how many pixels of each class are right, said and true, int64 (3, num_labels).

    predictions, references: class ids of one shape. Pixels whose reference is `ignored` are left out of all three, so
    what is predicted there costs nothing. Raises ValueError for different shapes and for ids outside 0..num_labels - 1.
    """
    said, true = np.asarray(predictions).ravel(), np.asarray(references).ravel()
    if said.shape != true.shape:
        raise ValueError(f"predictions and references have {said.size} and {true.size} pixels")
    if ignored is not None:
        said, true = said[true != ignored], true[true != ignored]
    if len(true) and not (min(said.min(), true.min()) >= 0 and max(said.max(), true.max()) < num_labels):
        raise ValueError(f"a class id is outside 0 to {num_labels - 1}")
    counts = [np.bincount(each, minlength=num_labels) for each in (true[said == true], said, true)]
    return np.stack(counts).astype(np.int64)


def iou_of_classes(counts_3C: np.ndarray) -> np.ndarray:
    """Return right / (said + true - right) of each class, float64 (C,); NaN for a class that occurs nowhere."""
    right, said, true = np.asarray(counts_3C, dtype=np.float64)
    union = said + true - right
    return np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)


def pixel_metrics(counts_3C: np.ndarray) -> dict[str, float]:
    """Return mean_iou, over the classes in predictions or references, and pixel_accuracy. 0 without pixels."""
    found, (right, _, true) = iou_of_classes(counts_3C), np.asarray(counts_3C, dtype=np.float64)
    mean = float(np.nanmean(found)) if not np.isnan(found).all() else 0.0
    return {"mean_iou": mean, "pixel_accuracy": float(right.sum() / true.sum()) if true.sum() else 0.0}


def pixel_statistics(metric: str, counts_N3C: np.ndarray) -> ExampleStatistics:
    """Return what each picture adds to a metric: its counts, which are pooled before the metric is computed."""
    counts = np.asarray(counts_N3C, dtype=np.float64)
    return ExampleStatistics(counts.reshape(len(counts), -1), lambda sum_K: pixel_metrics(sum_K.reshape(3, -1))[metric])


def by_class(counts_3C: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return name -> IoU and true pixels, of the classes that occur."""
    found = zip(names, iou_of_classes(counts_3C), np.asarray(counts_3C)[2], strict=True)
    return {name: {"iou": float(iou), "pixels": int(pixels)} for name, iou, pixels in found if not np.isnan(iou)}
