"""Word counts as a baseline: data that scikit-learn treats in its own way."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from decero.comparison.simple_baselines import copy, tfidf
from decero.config.finetuning import GenerationSection
from decero.tasks.label_predictions import label_statistics


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


def test_one_label_that_a_row_has_or_not_has_a_column(tmp_path):
    train = Dataset.from_dict({"text": ["good film", "bad film"] * 2, "labels": [[1.0], [0.0]] * 2})
    corpus = SimpleNamespace(splits={"train": {"": train}, "test": {"": train}}, columns=("text",), label_names=("ok",))
    config = SimpleNamespace(objective=SimpleNamespace(threshold=0.5))
    task = SimpleNamespace(corpus=corpus, problem_type="multi_label_classification", threshold=0.5, config=config)
    assert tfidf(task, tmp_path, "test")["metric"]["f1_micro"] == 1
    (tmp_path / "result.json").write_text('{"label_names": ["ok"]}')
    rows, score = label_statistics(tmp_path, "multi_label_classification", "f1_micro", ["ok"])
    assert score(rows.sum(axis=0)) == 1


def test_a_copy_of_a_dialogue_is_its_last_message(tmp_path):
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hello"}]
    pairs = Dataset.from_dict({"source": [json.dumps(said)], "target": ["Say hello"]})
    tasks = {"talk": SimpleNamespace(messages_column="messages")}
    config = SimpleNamespace(data=SimpleNamespace(tasks=tasks), generation=GenerationSection())
    parts = {split: {"talk": pairs} for split in ("train", "test")}
    task = SimpleNamespace(corpus=SimpleNamespace(splits=parts), config=config)
    assert copy(task, tmp_path, "test")["metric"]["exact_match"] == 1
