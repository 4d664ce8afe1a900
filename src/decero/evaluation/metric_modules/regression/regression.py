"""Compute mse, mae, pearson and spearman of one number per example; a module for `evaluate.load`."""

import datasets
import evaluate
import numpy
from scipy.stats import pearsonr, spearmanr


class Regression(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="SciPy: Virtanen et al. 2020",
            inputs_description="predictions, references: floats, (N,)",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")},
            ),
        )

    def _compute(self, predictions, references):
        predictions, references = numpy.asarray(predictions), numpy.asarray(references)
        error = predictions - references
        # A correlation with a constant is 0/0. A model with constant output has learnt nothing: 0.0, not NaN.
        constant = min(numpy.ptp(predictions), numpy.ptp(references)) == 0
        return {
            "mse": float(numpy.mean(error**2)),
            "mae": float(numpy.mean(numpy.abs(error))),
            "pearson": 0.0 if constant else float(pearsonr(predictions, references)[0]),
            "spearman": 0.0 if constant else float(spearmanr(predictions, references)[0]),
        }
