"""`--eval-only` reads outputs as the checkpoint was saved to read them, and adds no adapter."""

from types import SimpleNamespace

import pytest

from decero.config.finetune_answers import FinetuneQuestionAnswering
from decero.config.finetuning import FinetuneClassification
from decero.tasks.classification import Classification
from decero.tasks.question_answering import QuestionAnswering

RUN, NO_DATA = SimpleNamespace(eval_only=True), SimpleNamespace(validation=None)
BASE = {
    "output": "runs/x", "model": {"name_or_path": "x"}, "training": {"max_train_steps": 1},
    "data": {"files": {"train": "t.jsonl", "test": "t.jsonl"}},
}  # fmt: skip
READING = {"max_length": 64, "stride": 8, "max_answer_length": 5}


def checkpoint(**fields):
    return SimpleNamespace(config=SimpleNamespace(**fields))


@pytest.mark.parametrize(
    ("no_answer", "saved", "refuses", "used"),
    [
        ("auto", READING | {"no_answer_threshold": 3.5}, False, 3.5),
        ("auto", READING | {"no_answer_threshold": None}, True, None),
        ("on", READING | {"no_answer_threshold": None}, True, 0.0),
        ("off", READING | {"no_answer_threshold": 3.5}, False, None),
        ("auto", None, True, 0.0),
    ],
)
def test_a_reader_keeps_its_threshold_of_no_answer(no_answer, saved, refuses, used):
    task = QuestionAnswering(FinetuneQuestionAnswering.parse(BASE | {"objective": {"no_answer": no_answer}}, "x"))
    task.may_refuse = refuses  # what the data to score would ask for
    task.calibrate(RUN, checkpoint(question_answering=saved), NO_DATA)
    assert task.threshold == used


@pytest.mark.parametrize(("objective", "used"), [({}, 0.3), ({"threshold": 0.5}, 0.5), ({"threshold": 0.7}, 0.7)])
def test_a_classifier_keeps_its_threshold_unless_one_is_given(objective, used):
    task = Classification(FinetuneClassification.parse(BASE | {"objective": objective}, "x"))
    task.calibrate(RUN, checkpoint(decision_threshold=0.3), NO_DATA)
    assert task.threshold == used
    assert task.remark == ("" if used == 0.5 else f" (threshold {used})")


def test_no_adapter_is_added_to_a_model_that_is_scored(monkeypatch):
    task = Classification(FinetuneClassification.parse(BASE | {"peft": {"r": 2}}, "x"))
    task.config.call.eval_only = True
    monkeypatch.setattr(task, "initial_model", lambda section: section)
    assert task.build_model() is task.config.model
