"""Read csv and tsv files. Every field is text, exactly as it is written; an empty field is null.

csv: RFC 4180. A quoted field may hold separators, line ends and, written twice, quotes.
tsv: a line is a row, and a quote is a character as any other. Quotes are removed in two cases: around a field in which
every inner quote is doubled; and in the whole file, as in csv, when every name of the header is quoted.
A row may end in more or fewer empty fields than the header. A first line `sep=;` names the separator, as in Excel.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from decero.data.column_names import Wanted, check_names, missing_column
from decero.data.file_bytes import text_blocks
from decero.data.file_paths import note
from decero.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
LONGEST_FIELD = 64 << 20  # characters; a quote that never closes would take in the rest of the file
ROWS = 1024  # of a table
DECLARED = re.compile(r'"?sep=([^\w\s"]|\t)"?\r?\n')
Chunk = tuple[int, list[list[str]]]  # number of the first line, rows


@dataclass(frozen=True)
class Layout:
    """How a file is written. names: of the columns, in the order of the header."""

    path: Path
    separator: str
    quoted: bool
    names: tuple[str, ...] = field(default=())


def find_layout(path: Path, form: str, wanted: Wanted, rest: bool) -> Layout:
    """Return the layout of a file; a separator that its name does not say is printed as a guess.

    The separator is the one that a first line `sep=` names, or else that of the format. Another one is taken in two
    cases: it finds more of the wanted columns in the header; or it finds several names where the format's finds one.
    rest: whether the columns that are not named are wanted, too.

    Raises UserError: no header; a wanted column that is missing or there twice.
    """
    usual = "\t" if form == "tsv" else ","
    found, failed = [], None
    declared = DECLARED.fullmatch(next(_lines(path), ""))
    for separator in declared[1] if declared else (usual, *(each for each in SEPARATORS if each != usual)):
        try:
            found.append(_header(path, form, separator))
        except UserError as error:  # quotes that do not fit this separator
            failed = failed or error
    if failed and not any(name in layout.names for layout in found for name in wanted):
        raise failed
    best = max(found, key=lambda layout: sum(name in layout.names for name in wanted))
    if best.separator == usual and len(best.names) == 1 and not all(name in best.names for name in wanted):
        best = max(found, key=lambda layout: len(layout.names))
    for column, setting in wanted.items():
        if column not in best.names:
            raise missing_column(column, [name for name in best.names if name], path, setting)
    check_names(best.names, (set(best.names) - {""}) if rest else wanted, f"{path}, line {2 if declared else 1}")
    if best.separator != usual:
        name = SEPARATORS.get(best.separator, best.separator)
        note(f"{path}: read with {name} between the columns, as in its {'first line' if declared else 'header'}")
    if form == "tsv" and best.separator == "\t" and best.quoted:
        note(f"{path}: read with the quotes of csv, because all names of its header are quoted")
    return best


def read_table(layout: Layout, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the columns of a file in tables of some rows; a column that the file lacks is null.

    Raises UserError: a row with fewer fields than the header, or with text beyond it; a quote that does not close (with
    line).
    """
    places = [layout.names.index(name) if name in layout.names else None for name in columns]
    header = True
    for first, rows in _chunks(layout):
        if header:
            begin = _header_row(rows, layout.separator)
            if begin is None:
                continue
            first, rows, header = first + _height(rows[: begin + 1]), rows[begin + 1 :], False
        one_column = len(layout.names) == 1
        if set(map(len, rows)) != {len(layout.names)} or (one_column and any(map(_blank, rows))):
            rows = _fitted(layout, first, rows)
        fields = list(zip(*rows, strict=True))
        arrays = [_texts(fields[place]) if fields and place is not None else pa.nulls(len(rows), pa.string())
                  for place in places]  # fmt: skip
        yield pa.table(arrays, names=columns)


def _texts(values: Sequence[str]) -> pa.Array:
    texts = pa.array(values, pa.string())
    return pc.if_else(pc.equal(pc.binary_length(texts), 0), None, texts)


def _header(path: Path, form: str, separator: str) -> Layout:
    quoted = form != "tsv" or separator != "\t"
    rows: list[list[str]] = []
    names = None
    for _, chunk in _chunks(Layout(path, separator, quoted), 1):
        rows = [*rows[:1], *chunk]
        if (begin := _header_row(rows, separator)) is not None:
            names = rows[begin]
            break
    if names is None:
        raise UserError(f"{path}: there is no header; the first line names the columns")
    if not quoted and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        return _header(path, "csv", separator)
    return Layout(path, separator, quoted, tuple(name.strip() for name in names))


def _blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and row[0].isspace())


def _header_row(rows: list[list[str]], separator: str) -> int | None:
    """Return the place of the header among the first rows: the first that is not blank, and no line `sep=`."""
    declared = [["sep=", ""], [f"sep={separator}"]]
    begin = int(bool(rows) and rows[0] in declared)
    return next((number for number, row in enumerate(rows[begin:], start=begin) if not _blank(row)), None)


def _height(rows: list[list[str]]) -> int:
    """Return the number of lines of rows; a quoted field may have several."""
    return sum(1 + sum(value.count("\n") for value in row) for row in rows)


def _fitted(layout: Layout, first: int, rows: list[list[str]]) -> list[list[str]]:
    """Return the rows that are not blank, as wide as the header; only empty fields at their ends may differ.

    Raises UserError for a row with text beyond the header, and for one with fewer fields than the header has names.
    """
    width, fitted = len(layout.names), []
    least = _filled(layout.names)
    for number, row in enumerate(rows):
        if _blank(row):
            continue
        if len(row) < least or _filled(row) > width:
            fields = f"{len(row)} field{'s' * (len(row) != 1)}"
            mend = f"quote a field that holds {layout.separator!r}" if layout.quoted else "replace a tab inside a field"
            raise UserError(
                f"{layout.path}, line {first + _height(rows[:number])}: {fields}, but the header has {width}; "
                f"{mend}, or correct the row"
            )
        fitted.append(row[:width] + [""] * (width - len(row)))
    return fitted


def _filled(row: Sequence[str]) -> int:
    """Return the number of fields without the empty ones at the end."""
    return max((number for number, value in enumerate(row, start=1) if value), default=0)


def _chunks(layout: Layout, size: int = ROWS) -> Iterator[Chunk]:
    """Yield `size` rows at a time, the header and blank ones included, with the line of the first."""
    if not layout.quoted:
        for number, text in text_blocks(layout.path):
            lines = text.removesuffix("\n").split("\n")
            for begin in range(0, len(lines), size):
                yield number + begin, [_fields(line, layout.separator) for line in lines[begin : begin + size]]
        return
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(_lines(layout.path), delimiter=layout.separator, strict=True)
    first = 1
    try:
        while rows := list(islice(reader, size)):
            yield first, rows
            first = reader.line_num + 1
    except csv.Error as error:
        raise _csv_error(layout, first, str(error)) from error


def _lines(path: Path, first: int = 1) -> Iterator[str]:
    """Yield the lines of a file with their ends, from a line on."""
    lines = (line for _, text in text_blocks(path) for line in io.StringIO(text, newline="\n"))
    return islice(lines, first - 1, None)


def _fields(line: str, separator: str) -> list[str]:
    line = line.removesuffix("\r")
    if '""' in line:
        return [_unquoted(value) for value in line.split(separator)]
    return line.split(separator) if line else []


def _unquoted(value: str) -> str:
    """Remove the quotes that a csv writer puts around a field with quotes inside."""
    inside = value[1:-1]
    whole = len(value) > 3 and value[0] == value[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if whole and '"' in inside else value


def _csv_error(layout: Layout, first: int, message: str) -> UserError:
    """Return the error for a row that is no csv, at or after the row that begins at line `first`."""
    reader = csv.reader(_lines(layout.path, first), delimiter=layout.separator, strict=True)
    line = first  # of the row that is wrong
    with suppress(csv.Error):
        for _ in reader:
            line = first + reader.line_num
    if opened := _open_quote(layout, line):
        return UserError(
            f"{layout.path}, line {opened}: a quote opens a field here, and no quote before a separator or a line end "
            'closes it; write a quote inside a quoted field twice: ""'
        )
    if "new-line character" in message:
        return UserError(
            f"{layout.path}, line {line}: holds a carriage return that ends no line; quote the field or remove it (if "
            "it should end a line: tr '\\r' '\\n' < OLD > NEW)"
        )
    return UserError(f"{layout.path}, line {line}: cannot be read as csv: {message}")


def _open_quote(layout: Layout, first: int) -> int:
    """Return the line of the quote that opens a field and does not close well, in the row of line `first`; or 0."""
    opened, seen = 0, 0
    for number, line in enumerate(_lines(layout.path, first), start=first):
        place, begin, seen = 0, not opened, seen + len(line)
        while place < len(line):
            if opened:
                if (end := line.find('"', place)) < 0:
                    break
                place = end + 1
                if line[place : place + 1] == '"':
                    place += 1
                elif line[place : place + 1] in (layout.separator, "\n", "\r", ""):
                    opened, begin = 0, False
                else:
                    return opened
            else:
                if begin and line[place] == '"':
                    opened, place = number, place + 1
                    continue
                if (end := line.find(layout.separator, place)) < 0:
                    break
                begin, place = True, end + 1
        if not opened or seen > 2 * LONGEST_FIELD:
            break
    return opened
