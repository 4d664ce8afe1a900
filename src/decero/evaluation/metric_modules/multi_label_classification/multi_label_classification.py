"""Compute f1_micro, f1_macro, exact_match and label_accuracy of 0/1 labels; a module for `evaluate.load`."""

import datasets
import evaluate
import numpy
from sklearn.metrics import f1_score


class MultiLabelClassification(evaluate.Metric):
    def _info(self):
        labels = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="scikit-learn: Pedregosa et al. 2011",
            inputs_description="predictions, references: 0 or 1, (N, labels)",
            features=datasets.Features({"predictions": labels, "references": labels}),
        )

    def _compute(self, predictions, references):
        predictions, references = numpy.asarray(predictions), numpy.asarray(references)
        right = predictions == references
        # macro F1 is the mean over labels that are present or predicted
        occur = numpy.flatnonzero((predictions | references).any(axis=0))
        # with a second column scikit-learn never takes one label for two classes, of which "absent" is one
        predictions, references = (numpy.pad(each, ((0, 0), (0, 1))) for each in (predictions, references))
        macro = f1_score(references, predictions, average="macro", labels=occur) if len(occur) else 0.0
        return {
            "f1_micro": float(f1_score(references, predictions, average="micro", zero_division=0)),
            "f1_macro": float(macro),
            "exact_match": float(right.all(axis=1).mean()),
            "label_accuracy": float(right.mean()),
        }
