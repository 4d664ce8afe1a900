"""Compute accuracy, f1_macro and matthews_correlation of one class per example; a module for `evaluate.load`."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


class SingleLabelClassification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="scikit-learn: Pedregosa et al. 2011; MCC: Gorodkin 2004 (several classes)",
            inputs_description="predictions, references: class ids, (N,)",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
            ),
        )

    def _compute(self, predictions, references):
        classes = {*predictions, *references}
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "matthews_correlation": float(matthews_corrcoef(references, predictions)) if len(classes) > 1 else 0.0,
        }
