"""Read txt files by line, paragraph or document. A line ends with `\\n` or `\\r\\n`."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from decero.data.column_names import Wanted, missing_column
from decero.data.file_bytes import text_blocks
from decero.errors import UserError

SCHEMA = pa.schema({"text": pa.string()})


def read_table(path: Path, sample_by: str) -> Iterator[pa.Table]:
    """Yield the texts of a file in tables of some MiB; a paragraph ends with an empty line. Raises UserError."""
    cut = {"line": _lines, "paragraph": _paragraphs, "document": _document}[sample_by]
    for texts in cut(_blocks(path)):
        try:
            column = pa.array(texts, pa.string())
        except pa.ArrowException as error:  # Arrow's strings have at most 2 GiB
            raise UserError(f"{path}: one text is too long ({error}); set sample_by=line") from error
        yield pa.table({"text": column})


def check_text_alone(path: Path, wanted: Wanted) -> None:
    """Raise UserError for a wanted column that txt files do not have."""
    for column, setting in wanted.items():
        if column != "text":
            raise missing_column(column, ["text"], path, setting)


def _blocks(path: Path) -> Iterator[str]:
    for number, text in text_blocks(path):
        if number == 1 and "\n" not in text and "\r" in text:
            raise UserError(
                f"{path}: its lines end with carriage returns alone; convert it: tr '\\r' '\\n' < OLD > NEW"
            )
        yield text.replace("\r\n", "\n")


def _lines(blocks: Iterator[str]) -> Iterator[list[str]]:
    for block in blocks:
        yield block.removesuffix("\n").split("\n")


def _paragraphs(blocks: Iterator[str]) -> Iterator[list[str]]:
    rest: list[str] = []  # a list, because adding to a long string copies it
    for block in blocks:
        ended = rest and rest[-1].endswith("\n")
        rest.append(block)
        if "\n\n" in block or (ended and block.startswith("\n")):
            *texts, last = "".join(rest).split("\n\n")
            yield [text for text in texts if text]
            rest = [last]
    if text := "".join(rest):
        yield [text]


def _document(blocks: Iterator[str]) -> Iterator[list[str]]:
    yield ["".join(blocks)]
