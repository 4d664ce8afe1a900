"""Word counts as a baseline: data that scikit-learn treats in its own way."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from decero.comparison.simple_baselines import tfidf


def test_a_label_that_no_row_of_train_has_is_no_failure(tmp_path):
    train = Dataset.from_dict(
        {"text": ["good film", "bad film", "good book", "bad book"], "labels": [[1, 0], [0, 0]] * 2}
    )
    test = Dataset.from_dict({"text": ["good", "bad"], "labels": [[1, 0], [0, 1]]})
    corpus = SimpleNamespace(
        splits={"train": {"": train}, "test": {"": test}}, columns=("text",), label_names=("good", "rare")
    )
    config = SimpleNamespace(objective=SimpleNamespace(threshold=0.5))
    task = SimpleNamespace(corpus=corpus, problem_type="multi_label_classification", threshold=0.5, config=config)
    found = tfidf(task, tmp_path, "test")
    words = {"good", "bad", "film", "book", "good film", "bad film", "good book", "bad book"}
    assert found["num_parameters"] == len(words)
    assert found["metric"]["f1_macro"] == pytest.approx(0.5)
