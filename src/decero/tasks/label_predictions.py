"""Write the predictions of a classifier, and read them under other ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from decero.data.labels import in_known_order
from decero.errors import UserError


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
        found[:, place] |= column
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
