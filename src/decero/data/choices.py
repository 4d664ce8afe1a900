"""Read questions, their choices and the right one from any column layout."""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from decero.data.corpus import check_column, check_text, source_rows
from decero.data.label_values import Say, is_hidden, is_missing, to_number
from decero.errors import UserError

TEXTS = ("context", "question", "choices")  # columns of `read_choices`
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Choices = list[str | None]  # of a row, in the order of the columns; None: this row has fewer


def read_choices(
    corpus: DatasetDict, *, question: str, context: str | None, columns: Sequence[str], lists: bool,
    choices: Sequence[str] | None, label: str, say: Say = lambda line: None,
) -> DatasetDict:  # fmt: skip
    """Return the columns `context`, `question`, `choices` (list of texts), `labels` (place of the right one), `text`.

    text: all texts of a row, to find repeats. context: "" without such a column. A row may have fewer choices than
    others: a shorter list, or an empty or missing (null) text in one of several columns.

    columns, lists: where choices stand: one column of lists, or a column each. choices: the same in every row.
    A column of labels is read in one way: as the texts of choices, as letters (A, b), or as numbers from 0, or from 1
    where no label is 0 and one is the number of choices. say: called with a line for each guess.

    Raises UserError: a missing column; a row with fewer than two choices, or a repeated one; a label that names none.
    """
    read = {split: _choices_of(dataset, columns, lists, choices, split) for split, dataset in corpus.items()}
    labels = {split: _values(dataset, label, split) for split, dataset in corpus.items()}
    first = labels.get("train", [])
    for split in [split for split in labels if split != "train" and is_hidden(labels[split], first)]:
        say(f"{split} has no labels (-1 or null in every row of {label}); it is left out")
        del labels[split]
    if not labels:
        raise UserError(f"no split has labels in column {label!r}; name the column with data.label_column")
    pairs = [(row, value) for split in labels for row, value in zip(read[split], labels[split], strict=True)]
    kind, place, other = _reading(pairs)
    if kind == "numbers from 1":
        say(f"{label!r} holds numbers from 1: no label is 0, and one is the number of choices")
    if other:
        mend = "write letters (A, B) if you mean those"
        say(f"{label!r} is read as {kind}; {other} fit, too, but name other choices; {mend}")
    found = {}
    for split, values in labels.items():
        places = []
        for number, row, value in zip(source_rows(corpus[split]), read[split], values, strict=True):
            at = place(row, value)
            if at is None:
                there = " | ".join(str(text)[:40] for text in row if text is not None)
                shown = "no label" if is_missing(value) else f"label {str(value)[:80]!r} names none of its choices"
                raise UserError(
                    f"{split}, row {number}: {shown} ({there}), read as {kind}; correct it  (column {label!r})"
                )
            places.append(sum(text is not None for text in row[:at]))
        found[split] = _rows(corpus[split], question, context, read[split], places, split)
    return DatasetDict(found)


def _rows(
    dataset: Dataset, question: str, context: str | None, read: list[Choices], places: list[int], split: str
) -> Dataset:
    check_text(dataset, question, split)
    questions = dataset[question][:]
    contexts = [""] * len(questions)
    if context:
        check_text(dataset, context, split, "data.context_column")
        contexts = dataset[context][:]
    for column, texts in ((question, questions), (context, contexts)):
        gone = [row for row, text in zip(source_rows(dataset), texts, strict=True) if text is None]
        if gone:
            raise UserError(f"{split}, row {gone[0]}: no text (null) in {column!r}; fill or drop the row")
    kept = [[text for text in row if text is not None] for row in read]
    text = ["\n".join([*parts, *row]) for *parts, row in zip(contexts, questions, kept, strict=True)]
    kinds = {"context": Value("string"), "question": Value("string"), "choices": List(Value("string"))}
    features = Features(kinds | {"labels": Value("int64"), "text": Value("string")})
    table = {"context": contexts, "question": questions, "choices": kept, "labels": places, "text": text}
    return Dataset.from_dict(table, features=features)


def _choices_of(
    dataset: Dataset, columns: Sequence[str], lists: bool, choices: Sequence[str] | None, split: str
) -> list[Choices]:
    for column in columns:
        check_column(dataset, column, split, "data.choices_column")
    if choices is not None:
        return [list(choices)] * len(dataset)
    values = [dataset.with_format(None)[column][:] for column in columns]
    rows = values[0] if lists else [list(row) for row in zip(*values, strict=True)]
    read = []
    for number, row in zip(source_rows(dataset), rows, strict=True):
        where = f"{split}, row {number}"
        if not isinstance(row, list) or not all(isinstance(text, str | None) for text in row):
            held = "lists of texts" if lists else "texts"
            raise UserError(f"{where}: the choices are not {held}; write them so  (setting: data.choices_column)")
        found: Choices = [None if is_missing(text) else text for text in row]
        texts = [text for text in found if text is not None]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            problem = (
                f"{len(texts)} choices; give two or more" if len(texts) < 2 else "a choice appears twice; remove one"
            )
            raise UserError(f"{where}: {problem}  (setting: data.choices_column)")
        if lists and len(texts) < len(row):
            raise UserError(f"{where}: a choice has no text; remove it  (setting: data.choices_column)")
        read.append(found)
    return read


def _values(dataset: Dataset, column: str, split: str) -> list:
    """Return the labels of a split; those of a ClassLabel by their names."""
    check_column(dataset, column, split, "data.label_column")
    feature: Any = dataset.features[column]
    values = dataset.with_format(None)[column][:]
    named = getattr(feature, "int2str", None)
    return [named(v) if named and isinstance(v, int) and v >= 0 else v for v in values]


def _as_text(row: Choices, value: Any) -> int | None:
    plain = [None if text is None else text.strip() for text in row]
    return plain.index(value.strip()) if isinstance(value, str) and value.strip() in plain else None


def _as_letter(row: Choices, value: Any) -> int | None:
    letter = value.strip().upper() if isinstance(value, str) else ""
    return _inside(row, LETTERS.index(letter)) if len(letter) == 1 and letter in LETTERS else None


def _as_number(row: Choices, value: Any, first: int = 0) -> int | None:
    number = None if isinstance(value, bool) else to_number(value)
    return None if number is None or not number.is_integer() else _inside(row, int(number) - first)


def _inside(row: Choices, place: int) -> int | None:
    return place if 0 <= place < len(row) and row[place] is not None else None


def _reading(pairs: list[tuple[Choices, Any]]) -> tuple[str, Callable[[Choices, Any], int | None], str]:
    """Return how the labels are to be read, and its function: the first way that fits every row, or most rows.

    Then another way that fits every row and names other choices; "" for none.
    """
    ways: dict[str, Callable[[Choices, Any], int | None]] = {
        "texts": _as_text, "letters": _as_letter, "numbers from 0": _as_number,
        "numbers from 1": lambda row, value: _as_number(row, value, first=1),
    }  # fmt: skip
    fits = {kind: sum(place(row, value) is not None for row, value in pairs) for kind, place in ways.items()}
    best = max(fits, key=lambda kind: fits[kind])
    others = [
        kind for kind, place in ways.items()
        if kind != best and fits[kind] == fits[best] == len(pairs)
        and any(place(row, value) != ways[best](row, value) for row, value in pairs)
    ]  # fmt: skip
    return best, ways[best], (others or [""])[0]
