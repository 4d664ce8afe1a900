"""Precision and recall of each label, and the confusion matrix, by scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


def per_class(problem_type: str, predictions, references, names: Sequence[str]) -> dict[str, Any]:
    """Return `per_class` and, for a single label, `confusion_matrix`; {} for a regression.

    predictions, references: class ids (N,), or 0/1 (N, labels). per_class: name -> precision, recall, f1 and support
    (the number of examples with this label). confusion_matrix: rows are references, columns predictions, in the order
    of `names`. A label that is never predicted has precision 0.
    """
    if problem_type == "regression":
        return {}
    predictions, references = np.asarray(predictions), np.asarray(references)
    ids = list(range(len(names)))
    if problem_type == "multi_label_classification":  # with one column scikit-learn would score the class "absent"
        predictions, references = (np.pad(each, ((0, 0), (0, 1))) for each in (predictions, references))
    scores = precision_recall_fscore_support(references, predictions, labels=ids, zero_division=0)
    found: dict[str, Any] = {
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(names, *scores, strict=True)
        }
    }
    if problem_type == "single_label_classification":
        found["confusion_matrix"] = confusion_matrix(references, predictions, labels=ids).tolist()
    return found


def text_table(found: dict[str, Any]) -> str:
    """Return the scores of `per_class` as lines with columns; the confusion matrix beside them."""
    scores, matrix = found["per_class"], found.get("confusion_matrix")
    width = max(len("label"), *map(len, scores))
    lines = [f"{'label':<{width}}  precision  recall      f1  examples" + ("  predicted as" if matrix else "")]
    for place, (name, each) in enumerate(scores.items()):
        line = (
            f"{name:<{width}}  {each['precision']:9.3f}  {each['recall']:6.3f}  {each['f1']:6.3f}  {each['support']:8}"
        )
        if matrix:
            row = [f"{other} {count}" for other, count in zip(scores, matrix[place], strict=True) if count]
            line += f"  {', '.join(row)}"
        lines.append(line)
    return "\n".join(lines)
