"""The chosen threshold is the best of all that were tried, by scikit-learn's own metrics."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, f1_score

from decero.evaluation import predict
from decero.evaluation.threshold import THRESHOLDS, choose_threshold


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_no_other_threshold_is_better_on_the_same_rows(problem):
    draw = np.random.default_rng(3)
    many = problem == "multi_label_classification"
    logits = draw.normal(-2, 1.5, (211, 5 if many else 2))
    references = draw.random(logits.shape) < expit(logits + 2) if many else draw.random(211) < expit(logits[:, 1] + 2)
    probabilities = expit(logits) if many else softmax(logits, axis=1)[:, 1]

    def score(threshold):
        found = probabilities > threshold
        return f1_score(references, found, average="micro") if many else accuracy_score(references, found)

    chosen = choose_threshold(problem, logits, references)
    assert score(chosen) == pytest.approx(max(map(score, THRESHOLDS)))
    assert score(chosen) > score(0.5)
    assert (predict(problem, logits, chosen) == (probabilities > chosen)).all()


def test_of_equal_thresholds_the_nearest_to_one_half_is_chosen():
    logits = np.array([[0.0, 3.0], [0.0, -3.0]])
    assert choose_threshold("single_label_classification", logits, [1, 0]) == 0.5
    assert 0.0005 < min(THRESHOLDS) < 0.001 < 0.999 < max(THRESHOLDS) < 0.9995
