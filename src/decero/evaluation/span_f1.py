"""Precision, recall and F1 of labelled spans or words, from counts that add up over texts.

A span is right if its first and last place and its label are right, as in seqeval's strict mode and CoNLL-2003 (Tjong
Kim Sang & De Meulder 2003).
"""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from decero.evaluation.examples import ExampleStatistics, macro_f1

Items = Sequence[tuple[Hashable, str]]  # (place, label) of each span or word of a text
SPAN_METRICS = ("f1", "precision", "recall", "f1_macro", "word_accuracy")
TAG_METRICS = ("accuracy", "f1_macro")


def count_items(said: Iterable[Items], true: Iterable[Items], labels: Sequence[str]) -> np.ndarray:
    """Return for each text and label how many were right, said and true: (texts, 3, labels)."""
    numbers = {label: number for number, label in enumerate(labels)}
    counts = []
    for said_items, true_items in zip(said, true, strict=True):
        said_set, true_set = set(said_items), set(true_items)
        row = np.zeros((3, len(labels)))
        for place, items in enumerate((said_set & true_set, said_set, true_set)):
            for _, label in items:
                row[place, numbers[label]] += 1
        counts.append(row)
    return np.array(counts).reshape(-1, 3, len(labels))


def span_metrics(counts_N3C: np.ndarray) -> dict[str, float]:
    """Return micro F1, precision and recall, and F1 as the mean of the labels that occur."""
    sum_3C = counts_N3C.sum(axis=0)
    right, said, true = sum_3C.sum(axis=1)
    return {
        "f1": _ratio(2 * right, said + true), "precision": _ratio(right, said), "recall": _ratio(right, true),
        "f1_macro": macro_f1(sum_3C.ravel()),
    }  # fmt: skip


def by_label(counts_N3C: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and the number of references of each label that occurs."""
    found = {}
    for label, (right, said, true) in zip(labels, counts_N3C.sum(axis=0).T, strict=True):
        if said + true:
            figures = {"precision": _ratio(right, said), "recall": _ratio(right, true)}
            found[label] = figures | {"f1": _ratio(2 * right, said + true), "references": int(true)}
    return found


def span_statistics(metric: str, counts_N3C: np.ndarray) -> ExampleStatistics:
    """Return what each text adds to a metric of `span_metrics`, for paired tests."""
    if metric == "f1_macro":
        return ExampleStatistics(counts_N3C.reshape(len(counts_N3C), -1), macro_f1)
    right, said, true = counts_N3C.sum(axis=2).T
    parts = {"f1": (2 * right, said + true), "precision": (right, said), "recall": (right, true)}[metric]
    return ExampleStatistics(np.stack(parts, axis=1), _quotient)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _quotient(sum_2: np.ndarray) -> float:
    return _ratio(sum_2[0], sum_2[1])
