"""`--eval-only` needs no train split, reads outputs as the checkpoint was saved to, and adds no adapter."""

import copy
import json
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from decero.config.finetune_answers import FinetuneQuestionAnswering
from decero.config.finetuning import FinetuneClassification
from decero.config.pretraining import EvaluateCausalLM
from decero.errors import UserError
from decero.tasks import CausalLM, Completion, ExtractiveSummaries, MaskedLM, Seq2Seq
from decero.tasks.classification import Classification
from decero.tasks.likelihood import scored_rows
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


@pytest.fixture
def rows(tmp_path):
    """A file of rows with all columns that the tasks below read."""
    texts = ["banks in london fell . shares rose sharply . the market gained", "profit rose . news from tokyo"]
    lines = [{"text": text, "summary": "shares rose", "source": text, "target": "rose"} for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "a.txt").write_text("banks fell\nshares rose\n")
    return str(tmp_path / "rows.jsonl")


def scored_alone(kind, data, tokenizer, tmp_path):
    task = kind(kind.Config.parse(BASE | {"output": str(tmp_path / "run"), "data": data}, "x"))
    task.config.call.eval_only = True
    task.tokenizer = tokenizer
    return task


PAIRS = {
    Completion: lambda rows: {"files": {"test": rows}},
    Seq2Seq: lambda rows: {"parallel": {"test": [rows.replace("rows.jsonl", "a.txt")] * 2}},
}


@pytest.mark.parametrize("kind", [Completion, Seq2Seq, ExtractiveSummaries, MaskedLM, CausalLM])
def test_no_train_split_is_needed_to_score(kind, rows, tokenizer, tmp_path):
    split = "validation" if kind in (MaskedLM, CausalLM) else "test"
    files = {"files": {split: rows}} | ({"summary_column": "summary"} if kind is ExtractiveSummaries else {})
    task = scored_alone(kind, {"tasks": {"a": PAIRS[kind](rows)}} if kind in PAIRS else files, tokenizer, tmp_path)
    lines = []
    run = SimpleNamespace(
        accelerator=Accelerator(cpu=True), progress=True, print=lines.append, training=task.config.training
    )
    data = task.load_data(run)
    assert set(task.corpus.splits) == set(data.held_out) == {split}
    assert len(data.held_out[split]["a" if kind in PAIRS else ""]) == 2
    assert not any("during training" in line for line in lines)


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        (Completion, {"files": {"test": "FILE"}}, r"no train split; found test; give data\.tasks\.a\.files\.train"),
        (Seq2Seq, {"parallel": {"test": ["TXT", "TXT"]}}, r"give data\.tasks\.a\.parallel\.train"),
        (Seq2Seq, {"files": {"train": "FILE"}, "test_fraction": 0.01}, r"raise data\.tasks\.a\.test_fraction or give "
                                                                     r"data\.tasks\.a\.files\.test"),
        (MaskedLM, None, r"--eval-only: there is no validation split to score on; give data\.files\.validation"),
    ],
)  # fmt: skip
def test_a_split_that_is_missing_is_named_with_its_setting(kind, data, line, rows, tokenizer, tmp_path):
    written = json.dumps({"tasks": {"a": data}} if data else {"files": {"test": "FILE"}})
    data = json.loads(written.replace("FILE", rows).replace("TXT", rows.replace("rows.jsonl", "a.txt")))
    task = scored_alone(kind, data, tokenizer, tmp_path)
    task.config.call.eval_only = kind is MaskedLM
    with pytest.raises(UserError, match=line):
        task.load_data(
            SimpleNamespace(accelerator=Accelerator(cpu=True), progress=False, training=task.config.training)
        )


def test_a_text_is_measured_without_a_train_split(rows, tokenizer, tmp_path):
    given = {
        "output": str(tmp_path),
        "model": {"name_or_path": "x"},
        "split": "test",
        "data": {"files": {"test": rows}},
    }
    run = SimpleNamespace(accelerator=Accelerator(cpu=True), config=EvaluateCausalLM.parse(given, "x"))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "[SEP]"
    assert len(scored_rows(run, tokenizer)[1]) >= 2
    run.config.baselines = ["zlib"]
    with pytest.raises(UserError, match=r"no train split; found test; give data\.files\.train"):
        scored_rows(run, tokenizer)
