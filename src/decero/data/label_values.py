"""Read the values of label columns: missing ones, numbers, 0/1 flags, and lists of them."""

import ast
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from decero.errors import UserError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LARGEST = float(np.sqrt(np.finfo(np.float32).max))  # the square of a larger number is infinite in float32
WORDS = {"true": 1.0, "false": 0.0}
Say = Callable[[str], Any]


def is_missing(value: Any) -> bool:
    """Tell whether a value is null or blank text."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_hidden(values: list, train: list, numbers: bool = False) -> bool:
    """Tell whether a split hides its labels, as benchmarks do: null everywhere, or -1 where train has no -1.

    numbers: of a regression, where -1 is a value if train has any number below 0.
    """

    def kinds(rows: list) -> set[str]:
        items = (item for row in rows for item in (row if isinstance(row, list) and row else [row]))
        return {"null" if is_missing(i) else "-1" if to_number(i) == -1 else "label" for i in items}

    found = kinds(values)
    if numbers and any((to_number(value) or 0) < 0 for value in train):
        return found == {"null"}
    return found == {"null"} or (found in ({"-1"}, {"-1", "null"}) and "-1" not in kinds(train))


def to_number(value: Any) -> float | None:
    """Return a number, also one that is written as text; None for anything else."""
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value := value.strip()) else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # an integer of 400 digits
        return float("inf")


def to_flag(value: Any) -> float | None:
    """Return 0.0 or 1.0 for 0, 1, false and true, also written as text; None for anything else."""
    number = WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    number = to_number(value) if number is None else number
    return number if number in (0, 1) else None


def check_number(value: Any, where: str, column: str) -> float:
    """Return the number of a regression. Raises UserError for text, and for what float32 cannot square."""
    number = None if isinstance(value, bool) else to_number(value)
    if is_missing(value) or number is None or not np.isfinite(number):
        problem = "no label" if is_missing(value) else f"{_short(value)} is not a finite number"
        raise UserError(f"{where}: {problem}  (column {column!r})")
    if abs(number) > LARGEST:
        problem = f"{_short(value)} is too large: its square is infinite in float32; scale the labels"
        raise UserError(f"{where}: {problem}  (column {column!r})")
    return number


def check_flag(value: Any, where: str, column: str) -> bool:
    """Return whether a label of several is set. Raises UserError for anything but a flag."""
    flag = to_flag(value)
    if flag is None:
        problem = "no label" if is_missing(value) else f"{_short(value)} is neither 0 nor 1"
        raise UserError(f"{where}: {problem}  (column {column!r})")
    return bool(flag)


def check_layout(values: list, rows: Iterable[int], split: str, column: str, many: bool) -> None:
    """Raise UserError where single values and lists do not fit the problem, and for what is no label at all.

    rows: the number of each row, for messages.
    """
    for row, value in zip(rows, values, strict=True):
        items = value if isinstance(value, list) else [value]
        if any(is_missing(item) or item != item for item in items):  # NaN is not equal to NaN
            raise UserError(f"{split}, row {row}: no label  (column {column!r})")
        if isinstance(value, list) != many:
            held, kind = ("single values", "single") if many else ("lists", "multi")
            lists = "; lists of labels need a jsonl or parquet file, or several 0/1 columns" if many else ""
            raise UserError(
                f"data.label_column: {column!r} holds {held}, which does not fit "
                f"{'multi' if many else 'single'}_label_classification; "
                f"did you mean objective.problem_type={kind}_label_classification?{lists}  ({split}, row {row})"
            )
        if wrong := next((item for item in items if isinstance(item, list | dict | bytes)), None):
            raise UserError(
                f"{split}, row {row}: {_short(wrong)} is no label; a label is text or a number  (column {column!r})"
            )


def are_vectors(rows: list[list], column: str, say: Say) -> bool:
    """Tell whether the lists of train are 0/1 vectors.

    In a list of names no name stands twice. In a 0/1 vector of three places a value must.

    Raises UserError for lists that can be both.
    """
    found = {to_flag(value) for row in rows for value in row}
    lengths = {len(row) for row in rows}
    if not found or any(isinstance(value, float) for row in rows for value in row):
        return bool(found)  # numbers with a point are no names
    if None in found:
        return False
    if any(len(row) > len({to_flag(value) for value in row}) for row in rows):
        return True
    if all(isinstance(value, bool) for row in rows for value in row):
        return True
    if lengths == {1}:
        raise UserError(
            f"train: each list of {column!r} holds a single 0 or 1: a name or a 0/1 vector? Write single values, with "
            "objective.problem_type=single_label_classification"
        )
    if len(lengths) > 1:
        say(f"{column!r} holds lists of 0 and 1 of different lengths: they are read as the names 0 and 1")
    return len(lengths) == 1


def _short(value: Any) -> str:
    shown = (
        repr(value)
        if not isinstance(value, int) or abs(value) < 10**100
        else f"an integer of {value.bit_length()} bits"
    )
    return shown if len(shown) <= 80 else f"{shown[:80]} ..."


def list_in(text: str) -> list[str] | None:
    """Return the strings of a list that is written as a text; None for another text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        text = re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", text)  # NumPy writes no commas
        items = ast.literal_eval(text)  # a list of strings in JSON is one in Python, too
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            return items
    return None
