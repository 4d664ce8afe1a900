"""Read CoNLL files: a word a line, its tag in the last column, an empty line behind each sentence."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from datasets import Features, List, Value

from decero.data.column_names import Wanted
from decero.data.file_bytes import text_blocks
from decero.errors import UserError

ROWS = 1000  # of a table
TAGGED = ("data.tokens_column", "data.tags_column")


def find_features(path: Path, wanted: Wanted) -> Features:
    """Return the features of the words and the tags. Raises UserError where other columns are wanted."""
    if sorted(wanted.values()) != sorted(TAGGED):
        other = next(
            (f"{name!r}  (setting: {setting})" for name, setting in wanted.items() if setting not in TAGGED), ""
        )
        raise UserError(f"{path}: a conll file has words and tags only, and no column {other}; use jsonl or parquet")
    return Features(dict.fromkeys(_names(wanted), List(Value("string"))))


def read_table(path: Path, wanted: Wanted) -> Iterator[pa.Table]:
    """Yield sentences in tables. Columns have a tab between, or else spaces; lines of -DOCSTART- are left out.

    Raises UserError: a line with one column alone (with its number), and as `text_blocks`.
    """
    names, rows = _names(wanted), []
    words: list[str] = []
    tags: list[str] = []
    for first, text in text_blocks(path):
        for number, line in enumerate(text.split("\n"), start=first):
            line = line.removesuffix("\r")
            if not line.strip() and words:
                rows.append((words, tags))
                words, tags = [], []
            if not line.strip() or line.startswith("-DOCSTART-"):
                continue
            fields = line.split("\t") if "\t" in line else line.split()
            if len(fields) < 2:
                raise UserError(f"{path}, line {number}: only one column; give a word and, in the last column, its tag")
            words.append(fields[0])
            tags.append(fields[-1].strip())
            if len(rows) == ROWS:
                yield _table(rows, names)
                rows = []
    yield _table([*rows, (words, tags)] if words else rows, names)


def _table(rows: list[tuple[list[str], list[str]]], names: list[str]) -> pa.Table:
    kind = pa.list_(pa.string())
    return pa.table([pa.array([row[side] for row in rows], kind) for side in (0, 1)], names=names)


def _names(wanted: Wanted) -> list[str]:
    """Return the names of the columns of words and of tags."""
    return [name for setting in TAGGED for name, each in wanted.items() if each == setting]
