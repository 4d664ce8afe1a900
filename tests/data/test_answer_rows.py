"""Questions are read from every layout, and an answer that is not where its row says is refused."""

import pytest
from datasets import Dataset

from decero.config.finetune_answers import AnswerData
from decero.data.answer_rows import question_budget, read_answers
from decero.errors import UserError

CONTEXT = "Zoë 🙂 met Ann in Rome. Ann left."


def read(rows, **columns):
    return read_answers(Dataset.from_list(rows), AnswerData(name="x", **columns), "train")


def row(text, start, context=CONTEXT):
    return {"context": context, "question": "Who?", "answers": {"text": [text], "answer_start": [start]}}


def test_squad_rows_and_flat_rows_are_read_alike():
    squad = read([row("Ann", 10), {"context": "c", "question": "q", "answers": {"text": [], "answer_start": []}}])
    flat = [{"p": CONTEXT, "q": "Who?", "a": "Ann", "at": "10"}, {"p": "c", "q": "q", "a": "", "at": ""}]
    names = {"context_column": "p", "question_column": "q", "answers_column": "a", "answer_start_column": "at"}
    for found in (squad, read(flat, **names)):
        assert found["answer_texts"][:] == [["Ann"], []]
        assert found["answer_starts"][:] == [[10], []]
        assert found["answer_id"][:] == ["0", "1"]
    assert read([row("Ann", 10) | {"n": 7}], id_column="n")["answer_id"][:] == ["7"]


@pytest.mark.parametrize(
    ("text", "start", "line"),
    [
        ("Ann", 11, "row 0: the answer 'Ann' is not at character 11 of its context, which has 'nn ' there; "
         "the context has it at 10, 23"),
        ("Ann", 14, "which has 'in ' there; answer_start counts bytes here; in characters it is 10"),
        ("Bob", 10, "the answer 'Bob' is not at character 10 of its context, which has 'Ann' there; "
         "the context does not have it anywhere; correct"),
        ("Ann", 900, "which has '' there; the context has it at 10, 23"),
        ("Ann", -23, "the context has it at 10, 23"),
        (" ", 3, "an answer is empty; where there is none, give empty lists"),
    ],
)  # fmt: skip
def test_an_answer_that_is_elsewhere_is_refused(text, start, line):
    with pytest.raises(UserError) as refused:
        read([row(text, start)])
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"answers": "Ann"}, "row 0: column 'answers' holds 'Ann'; give {text: [...], answer_start: [...]}, or one"),
        ({"answers": {"text": ["Ann"], "answer_start": []}}, "row 0: 1 answers but 0 answer_start"),
        (
            {"answers": {"text": ["Ann"], "answer_start": ["x"]}},
            "row 0: answer_start is 'x'; give the place of a character",
        ),
        (
            {"answers": {"text": ["Ann"], "answer_start": [10.5]}},
            "row 0: answer_start is 10.5; give the place of a character",
        ),
        ({"question": " "}, "row 0: the question in 'question' is empty"),
        ({"question": None}, "row 0: no text (null) in 'question'"),
        ({"context": 7}, "column 'context' holds int64, not text  (setting: data.context_column)"),
    ],
)
def test_damaged_rows_are_refused_in_one_line(change, line):
    with pytest.raises(UserError) as refused:
        read([row("Ann", 10) | change])
    assert line in str(refused.value)


def test_a_missing_column_names_the_nearest_one():
    with pytest.raises(
        UserError, match=r"no column 'answer'; did you mean answers\?  \(setting: data.answers_column\)"
    ):
        read([row("Ann", 10)], answers_column="answer")


def test_a_budget_draws_questions_by_the_seed():
    train = Dataset.from_dict({"n": list(range(20))})
    one, two = (question_budget(train, 7, seed)["n"][:] for seed in (0, 1))
    assert one == sorted(one) == question_budget(train, 7, 0)["n"][:] != two
    assert question_budget(train, None, 0) is train
    with pytest.raises(UserError, match=r"data\.max_train_rows: 21 exceeds the 20 questions of train"):
        question_budget(train, 21, 0)
