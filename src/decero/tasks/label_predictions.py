"""Write the predictions of a classifier, and read them under other ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from decero.data.labels import in_known_order
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics, class_statistics
from decero.evaluation.per_class import per_class
from decero.training.records import read_record

OTHERS = 200  # columns; those that no run fills are dropped before runs are compared


def check_threshold(threshold: float | str, problem_type: str, names: Sequence[str], splits: Sequence[str]) -> None:
    """Raise UserError for a threshold that the labels do not have, or that cannot be chosen on validation alone."""
    if problem_type == "single_label_classification" and len(names) != 2:
        raise UserError(
            f"objective.threshold: there are {len(names)} labels, of which the likeliest is predicted; a threshold is "
            "for two labels, or for multi_label_classification; remove it"
        )
    for split in ("validation", "test") if threshold == "validation" else ():
        if split not in splits:
            why = "it is chosen on" if split == "validation" else "validation has chosen it, so scores need"
            raise UserError(
                f"objective.threshold: {why} a {split} split; give data.files.{split} or data.{split}_fraction"
            )


def check_same_labels(model: str, known: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError where a model that is only scored has a head (`known`, its labels) without one of `names`."""
    if known and in_known_order(names, known, some=True) is None:
        raise UserError(
            f"--eval-only: {model} has the labels {', '.join(known[:20])}, and the data has {', '.join(names[:20])}; "
            "name those of the data as the model does"
        )


def renumbered(labels: np.ndarray, theirs: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Number a run's labels, (N,) or 0/1 (N, labels), as in `names`; labels that only the run knows come last, as one.

    Runs that start from another checkpoint may have other ids, and more labels.
    """
    places = np.array([names.index(name) if name in names else len(names) for name in theirs])
    if labels.ndim == 1:
        return places[labels]
    found = np.zeros((len(labels), len(names) + 1), dtype=labels.dtype)
    for place, column in zip(places, labels.T, strict=True):
        found[:, place] = np.maximum(found[:, place], column)  # floats, as they come from the file
    return found


def in_columns_of(names: Sequence[str], counts_NKC: np.ndarray, theirs: Sequence[str]) -> np.ndarray:
    """Order the last axis, one label each, as in `names`, and append OTHERS columns for labels that only the run knows.

    No example is of such a label, so runs may have other ones there. More than OTHERS of them share the last column.
    """
    found = np.zeros((*counts_NKC.shape[:-1], len(names) + OTHERS), dtype=counts_NKC.dtype)
    others = [name for name in theirs if name not in names]
    for column, name in enumerate(theirs):
        place = names.index(name) if name in names else len(names) + min(others.index(name), OTHERS - 1)
        found[..., place] += counts_NKC[..., column]
    return found


def write_predictions(
    output: Path, problem_type: str, texts: dict[str, list], labels: np.ndarray, logits: np.ndarray,
    predictions: np.ndarray, names: list[str],
) -> None:  # fmt: skip
    """predictions.parquet: a row an example of the scored split, in its order.

    Columns: index, row (its number in its file, from 0), the texts, label, prediction, logits; and, but for a
    regression, label_name, prediction_name (lists of names where there are several labels) and probabilities, in the
    order of `names`.
    """
    table: dict[str, Any] = dict(texts) | {"label": labels.tolist(), "prediction": predictions.tolist()}
    if problem_type != "regression":
        for column, values in (("label_name", labels), ("prediction_name", predictions)):
            table[column] = [_named(value, names) for value in np.asarray(values).tolist()]
        many = problem_type == "multi_label_classification"
        table["probabilities"] = (expit(logits) if many else softmax(logits, axis=-1)).tolist()
    table["logits"] = logits.tolist()
    pd.DataFrame(table).rename_axis("index").reset_index().to_parquet(output / "predictions.parquet", index=False)


def _named(value: int | list[float], names: list[str]) -> str | list[str]:
    return names[value] if isinstance(value, int) else [name for name, on in zip(names, value, strict=True) if on]


def label_scores_of(folder: Path, problem_type: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what `per_class` finds in the predictions of a finished run, under the ids of `names`; {} for numbers."""
    if problem_type == "regression":
        return {}
    predictions, labels, theirs = _answers(folder)
    said = set(predictions.tolist() if predictions.ndim == 1 else np.flatnonzero(predictions.any(axis=0)).tolist())
    known = list(names)
    known += [name for i, name in enumerate(theirs) if name not in known and i in said]  # only the checkpoint's
    predictions, labels = (renumbered(ids, theirs, known) for ids in (predictions, labels))
    if predictions.ndim == 2:
        predictions, labels = predictions[:, : len(known)], labels[:, : len(known)]
    return per_class(problem_type, predictions, labels, known)


def label_statistics(folder: Path, problem_type: str, metric: str, names: Sequence[str]) -> ExampleStatistics:
    """Return what each example adds to a metric, from the predictions of a finished run, under the ids of `names`."""
    predictions, labels, theirs = _answers(folder)
    if metric in ("f1_micro", "f1_macro", "matthews_correlation"):
        predictions, labels = (renumbered(ids, theirs, names) for ids in (predictions, labels))
    return class_statistics(problem_type, metric, predictions, labels, len(names) + 1)


def _answers(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return predictions, labels and the names of the ids of a finished run."""
    table = pd.read_parquet(folder / "predictions.parquet")
    predictions, labels = (np.array(table[column].tolist()) for column in ("prediction", "label"))
    return predictions, labels, read_record(folder)["label_names"]
