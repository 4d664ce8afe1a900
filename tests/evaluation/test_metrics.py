"""Metrics against scikit-learn and SciPy on random data, without a network."""

import socket

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from decero.errors import UserError
from decero.evaluation import HIGHER_IS_BETTER, MAIN_METRIC, METRICS, compute_metrics, example_scores, metrics, predict
from decero.evaluation.examples import class_statistics
from decero.evaluation.per_class import per_class

N, LABELS = 101, 5


def sample(problem_type, seed=0):
    rng = np.random.default_rng(seed)
    if problem_type == "single_label_classification":
        return rng.integers(0, LABELS, N), rng.integers(0, LABELS, N)
    if problem_type == "multi_label_classification":
        return rng.integers(0, 2, (N, LABELS)), rng.integers(0, 2, (N, LABELS))
    return rng.normal(size=N), rng.normal(size=N)


def test_single_label_metrics_are_those_of_sklearn():
    predictions, references = sample("single_label_classification")
    assert compute_metrics("single_label_classification", predictions, references) == pytest.approx(
        {
            "accuracy": sklearn.metrics.accuracy_score(references, predictions),
            "f1_macro": sklearn.metrics.f1_score(references, predictions, average="macro"),
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(references, predictions),
        }
    )


@pytest.mark.slow
def test_a_thousand_accuracies_are_those_of_numpy():
    """From a single example to 300, of one class to seven, right by chance or nearly always."""
    draw = np.random.default_rng(0)
    for _ in range(1000):
        size, classes = int(draw.integers(1, 301)), int(draw.integers(1, 8))
        references, predictions = draw.integers(0, classes, (2, size))
        predictions = np.where(draw.random(size) < draw.random(), references, predictions)
        right = [
            (
                2 * np.sum((predictions == kind) & (references == kind)),
                np.sum(predictions == kind) + np.sum(references == kind),
            )
            for kind in range(classes)
        ]
        found = compute_metrics("single_label_classification", predictions, references)
        assert found["accuracy"] == pytest.approx(np.mean(predictions == references), abs=1e-12)
        assert found["f1_macro"] == pytest.approx(np.mean([two / both for two, both in right if both]), abs=1e-12)
        assert example_scores("single_label_classification", predictions, references).mean() == found["accuracy"]


def test_multi_label_metrics_are_those_of_sklearn():
    predictions, references = sample("multi_label_classification")
    predictions[0] = references[0]  # otherwise no label set is right by chance
    assert compute_metrics("multi_label_classification", predictions, references) == pytest.approx(
        {
            "f1_micro": sklearn.metrics.f1_score(references, predictions, average="micro"),
            "f1_macro": sklearn.metrics.f1_score(references, predictions, average="macro"),
            "exact_match": sklearn.metrics.accuracy_score(references, predictions),
            "label_accuracy": 1 - sklearn.metrics.hamming_loss(references, predictions),
        }
    )


def test_macro_f1_is_the_mean_over_labels_that_occur():
    predictions, references = sample("multi_label_classification")
    wider = [np.insert(each, 1, 0, axis=1) for each in (predictions, references)]  # a label that is nowhere
    found = compute_metrics("multi_label_classification", *wider)["f1_macro"]
    assert found == pytest.approx(sklearn.metrics.f1_score(references, predictions, average="macro"))
    rows, score = class_statistics("multi_label_classification", "f1_macro", *wider, wider[0].shape[1])
    assert score(rows.sum(axis=0)) == pytest.approx(found)


@pytest.mark.parametrize("said", [0, 1])
def test_one_label_is_no_class_and_its_absence(said):
    references = np.array([[1]] + [[0]] * 19)
    predictions = np.array([[said]] + [[said]] + [[0]] * 18)
    found = compute_metrics("multi_label_classification", predictions, references)
    expected = 2 / 3 * said  # one right of one and of two
    assert (found["f1_micro"], found["f1_macro"]) == pytest.approx((expected, expected))
    beside = [np.pad(each, ((0, 0), (0, 2))) for each in (predictions, references)]  # two labels that never occur
    assert compute_metrics("multi_label_classification", *beside)["f1_macro"] == pytest.approx(expected)
    scores = per_class("multi_label_classification", predictions, references, ["spam"])["per_class"]
    assert scores == {"spam": pytest.approx({"precision": said / 2, "recall": said, "f1": expected, "support": 1})}


def test_regression_metrics_are_those_of_sklearn_and_scipy():
    predictions, references = sample("regression")
    assert compute_metrics("regression", predictions, references) == pytest.approx(
        {
            "mse": sklearn.metrics.mean_squared_error(references, predictions),
            "mae": sklearn.metrics.mean_absolute_error(references, predictions),
            "pearson": scipy.stats.pearsonr(predictions, references).statistic,
            "spearman": scipy.stats.spearmanr(predictions, references).statistic,
        }
    )


def test_a_constant_prediction_scores_zero_not_nan():
    _, references = sample("regression")
    found = compute_metrics("regression", np.full(N, 0.1), references)
    assert found["pearson"] == found["spearman"] == 0.0
    assert found["mse"] == pytest.approx(np.mean((0.1 - references) ** 2))
    assert compute_metrics("single_label_classification", np.zeros(N), np.zeros(N))["matthews_correlation"] == 0.0
    assert compute_metrics("multi_label_classification", np.zeros((N, 2)), np.zeros((N, 2)))["f1_macro"] == 0.0


@pytest.mark.parametrize(
    ("problem_type", "metric", "sign"),
    [
        ("single_label_classification", "accuracy", 1),
        ("multi_label_classification", "label_accuracy", 1),
        ("regression", "mse", -1),
    ],
)
def test_example_scores_add_up_to_a_metric(problem_type, metric, sign):
    predictions, references = sample(problem_type)
    scores = example_scores(problem_type, predictions, references)
    assert scores.shape == (N,)
    assert scores.dtype == np.float64
    assert sign * scores.mean() == pytest.approx(compute_metrics(problem_type, predictions, references)[metric])


def test_predict_for_each_problem_type():
    logits = np.array([[-2.0, 1.0, 3.0], [0.5, -1.0, 0.0]], dtype=np.float32)
    np.testing.assert_array_equal(predict("single_label_classification", logits), [2, 0])
    np.testing.assert_array_equal(predict("multi_label_classification", logits), [[0, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(predict("regression", logits[:1].T), [-2.0, 1.0, 3.0])


def test_invalid_arguments_are_refused():
    with pytest.raises(UserError, match="did you mean single_label_classification"):
        compute_metrics("single_label_clasification", [0], [0])
    with pytest.raises(UserError, match="diverged"):
        predict("single_label_classification", [[0.0, float("nan")]])
    with pytest.raises(ValueError, match="one number per example"):
        predict("regression", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="the same non-empty"):  # would broadcast to (3, 3) unnoticed
        compute_metrics("regression", np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="non-empty"):
        example_scores("single_label_classification", [], [])


def test_metrics_have_a_direction_and_problems_a_main_metric():
    for problem_type, names in METRICS.items():
        assert MAIN_METRIC[problem_type] in names
        assert tuple(compute_metrics(problem_type, *sample(problem_type))) == names
    others = {"loss", "eval_loss", "eval_accuracy", "perplexity", "bits_per_byte", "source_gain"}
    others |= {"detection_loss", "detection_accuracy"}
    assert {name for names in METRICS.values() for name in names} | others == set(HIGHER_IS_BETTER)
    lower = {name for name, higher in HIGHER_IS_BETTER.items() if not higher}
    assert lower == {"mse", "mae", "loss", "eval_loss", "perplexity", "bits_per_byte", "detection_loss"}


def test_metrics_load_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a network call to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    metrics._module.cache_clear()
    for problem_type in METRICS:
        assert compute_metrics(problem_type, *sample(problem_type))
