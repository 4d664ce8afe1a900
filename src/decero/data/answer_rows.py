"""Read questions with their contexts and answers, and check that each answer stands where its row says."""

from itertools import islice
from typing import Any, Protocol

import numpy as np
from datasets import Dataset, List, Value

from decero.data.corpus import check_column, check_text, source_rows
from decero.errors import UserError

Span = tuple[str, int]  # an answer and the character of the context at which it starts
SHOWN = 80  # characters of a text in a message
TEXTS, STARTS, NAMES, NUMBERS = "answer_texts", "answer_starts", "answer_id", "answer_number"
SOURCE = "answer_row"


class AnswerColumns(Protocol):
    """The settings that name the columns, see `config.finetune_answers.AnswerData`."""

    context_column: str
    question_column: str
    answers_column: str
    answer_start_column: str | None
    id_column: str | None


def read_answers(dataset: Dataset, columns: AnswerColumns, where: str) -> Dataset:
    """Return the columns of context and question, and five of this module with the same meaning for every layout.

    answer_texts, answer_starts: lists, empty where the context has no answer. Starts count characters, not bytes.
    answer_id: the name of the question, else its row. answer_row: its row in its file, see `source_rows`.
    answer_number: its place in this split, from 0.
    where: the name of the data in error messages.

    Raises UserError: a missing column, no text, a missing question or context, an answer that does not stand where its
    row says (with the row, both strings, and where it does stand).
    """
    for name in ("context_column", "question_column"):
        check_text(dataset, getattr(columns, name), where, f"data.{name}")
    names = {name: getattr(columns, name) for name in ("answers_column", "answer_start_column", "id_column")}
    for name, column in names.items():
        if column is not None:
            check_column(dataset, column, where, f"data.{name}")
    texts: list[list[str]] = []
    starts: list[list[int]] = []
    ids: list[str] = []
    numbers = list(source_rows(dataset))
    wanted = list(dict.fromkeys([columns.context_column, columns.question_column, *filter(None, names.values())]))
    for table in dataset.select_columns(wanted).with_format(None).iter(batch_size=1000):
        for values in zip(*table.values(), strict=True):
            row = dict(zip(table, values, strict=True))
            number = numbers[len(texts)]
            ids.append(str(number if columns.id_column is None else row[columns.id_column]))
            place = f"{where}, row {number}" + ("" if columns.id_column is None else f" (id {_clip(ids[-1])})")
            spans = _spans_of(row, columns, place)
            _check_row(row[columns.context_column], row[columns.question_column], spans, columns, place)
            texts.append([text for text, _ in spans])
            starts.append([start for _, start in spans])
    found = dataset.select_columns(list(dict.fromkeys([columns.context_column, columns.question_column])))
    for name, column, kind in (
        (TEXTS, texts, List(Value("string"))), (STARTS, starts, List(Value("int32"))),
        (NAMES, ids, Value("string")), (NUMBERS, list(range(len(ids))), Value("int32")),
        (SOURCE, numbers, Value("int64")),
    ):  # fmt: skip
        found = found.add_column(name, column, feature=kind)
    return found


def question_budget(train: Dataset, budget: int | None, seed: int) -> Dataset:
    """Draw `budget` questions of train: a function of (train, budget, seed). Raises UserError if there are fewer."""
    if budget is None or budget == len(train):
        return train
    if budget > len(train):
        raise UserError(f"data.max_train_rows: {budget} exceeds the {len(train)} questions of train; lower it")
    return train.select(np.sort(np.random.default_rng(seed).permutation(len(train))[:budget]))


def _spans_of(row: dict[str, Any], columns: AnswerColumns, place: str) -> list[Span]:
    """Return the answers of a row. Raises UserError for a layout that is none of the known ones."""
    value, column = row[columns.answers_column], columns.answers_column
    if columns.answer_start_column is not None:
        if value is None or value == "":
            return []
        if not isinstance(value, str):
            raise UserError(f"{place}: column {column!r} holds {_clip(value)}; give the text of one answer")
        return [(value, _start(row[columns.answer_start_column], columns.answer_start_column, place))]
    if value is None:
        return []
    if isinstance(value, dict) and {"text", "answer_start"} <= set(value):
        texts, starts = value["text"], value["answer_start"]
        texts, starts = ([] if each is None else each for each in (texts, starts))
        if isinstance(texts, list) and isinstance(starts, list) and all(isinstance(text, str) for text in texts):
            if len(texts) != len(starts):
                raise UserError(f"{place}: {len(texts)} answers but {len(starts)} answer_start; give one for each")
            return [(text, _start(start, "answer_start", place)) for text, start in zip(texts, starts, strict=True)]
    raise UserError(
        f"{place}: column {column!r} holds {_clip(value)}; give {{text: [...], answer_start: [...]}}, or one answer as "
        "text and data.answer_start_column"
    )


def _start(value: Any, column: str, place: str) -> int:
    """Return a start as a number; csv files hold it as text."""
    try:
        number = None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != float(value):
        raise UserError(f"{place}: {column} is {_clip(value)}; give the place of a character, a number from 0")
    return number


def _check_row(context: Any, question: Any, spans: list[Span], columns: AnswerColumns, place: str) -> None:
    for text, column in ((context, columns.context_column), (question, columns.question_column)):
        if text is None:
            raise UserError(f"{place}: no text (null) in {column!r}; fill or drop the row")
    if not question.strip():
        raise UserError(f"{place}: the question in {columns.question_column!r} is empty; fill or drop the row")
    for answer, start in spans:
        if not answer.strip():
            raise UserError(f"{place}: an answer is empty; where there is none, give empty lists")
        if start < 0 or context[start : start + len(answer)] != answer:
            raise UserError(f"{place}: {_misplaced(context, answer, start)}")


def _misplaced(context: str, answer: str, start: int) -> str:
    """Say what stands at the start of a misplaced answer, and where the answer stands."""
    there = context[start : start + len(answer)] if start >= 0 else ""
    what = f"the answer {_clip(answer)} is not at character {start} of its context, which has {_clip(there)} there"
    if start >= 0 and context.encode("utf-8", "replace")[start:].startswith(answer.encode("utf-8", "replace")):
        right = len(context.encode("utf-8", "replace")[:start].decode("utf-8", "ignore"))
        return f"{what}; answer_start counts bytes here; in characters it is {right}"
    places = list(islice(_places(context, answer), 4))
    if not places:
        return f"{what}; the context does not have it anywhere; correct the answer, or drop the row"
    return f"{what}; the context has it at {', '.join(map(str, places[:3]))}{' ...' if len(places) > 3 else ''}"


def _places(context: str, answer: str):
    at = context.find(answer)
    while at >= 0:
        yield at
        at = context.find(answer, at + 1)


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ...{text[-1]}"
