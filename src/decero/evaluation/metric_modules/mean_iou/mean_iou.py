"""Compute mean_iou and pixel_accuracy of class ids from one pooled count of pixels; a module for `evaluate.load`.

It differs from `evaluate`'s own module of this name. An ignored pixel counts in no class. A class that is
predicted, but is not in the references, has an IoU of 0.
"""

import datasets
import evaluate
import numpy as np

from decero.evaluation.mean_iou import pixel_counts, pixel_metrics


class MeanIou(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Long et al. 2015, section 5",
            inputs_description="predictions, references: lists of class ids, one list a picture; num_labels: classes",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, num_labels, ignore_index=255):
        pairs = zip(predictions, references, strict=True)
        counts = [pixel_counts(said, true, num_labels, ignore_index) for said, true in pairs]
        return pixel_metrics(np.sum(counts, axis=0))
