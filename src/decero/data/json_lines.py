"""Read JSON Lines: an object a line; also a JSON array of objects, and lines that are texts.

A column has one type in all files: text, numbers, truth values, lists or objects. Where texts and numbers are mixed,
the numbers are text, as they are written; so are those of a wanted column (a text, a label) with a decimal point.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as paj

from decero.data.column_names import Wanted, missing_column, nested_names, value_at
from decero.data.file_bytes import text_blocks
from decero.errors import UserError

SAMPLE = 10_000  # rows of a stream that decide the types
DEEPEST = 32  # levels of lists and objects in a column; Arrow files allow 64
NAMED = 1000  # rows of a file whose columns an error names
ROWS = 10_000  # of a table, at most
Row = tuple[str, str, dict[str, Any]]  # "line 3" ("item 3" of an array), source text, value
SCALARS = {str: "text", int: "a number", float: "a number", bool: "true or false"}
MISSING: Any = object()
UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
BLANKS = re.compile(r"[ \t\r\n]*")  # of JSON
WRITTEN = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # numbers as they are written


def find_types(paths: list[Path], wanted: Wanted, rest: bool, sample: bool) -> dict[str, pa.DataType]:
    """Return the type of each wanted column, and of all others if `rest`; by the first rows if `sample`.

    Raises UserError: a line that is no JSON; a wanted column that no row of a file has; one that mixes texts and lists.
    """
    columns = {name: _Column(name) for name in wanted}
    keys = {name: _written_keys(name) for name in wanted}
    for path in paths[:1] if sample else paths:
        has = _Names(path, wanted)
        for place, text, row in islice(_all_rows(path), SAMPLE if sample else None):
            for name, parts in keys.items():
                if any(sum(map(text.count, forms)) > 1 for forms in parts):
                    _check_twice(path, place, text, name)
            if rest:
                for name in row:
                    if name not in columns:
                        columns[name] = _Column(name)
            for column in columns.values():
                column.add(path, place, value_at(row, column.name, MISSING))
            has.add(row)
        has.check()
    return {column.name: column.type(column.name in wanted) for column in columns.values()}


def read_table(path: Path, types: dict[str, pa.DataType], wanted: Wanted, checked: bool) -> Iterator[pa.Table]:
    """Yield the columns of a file in tables.

    Raises UserError: a value that is not of its column's type; at the end, a wanted column that no row has.

    checked: whether `find_types` has read every line. Then Arrow reads the blocks that it can, which is faster; it does
    not survive deeply nested lists.
    """
    has = _Names(path, wanted)
    for number, text in text_blocks(path):
        whole = number == 1 and text.lstrip().startswith("[")
        if whole:
            rows = _items(path)
        elif checked and (table := _by_arrow(text, types)) is not None:
            yield table
            continue
        else:
            rows = _rows(path, number, text)
        while some := list(islice(rows, ROWS)):
            for _, _, row in () if checked else some:
                has.add(row)
            yield _table(path, some, types, wanted)
        if whole:
            break
    has.check()


def _by_arrow(text: str, types: dict[str, pa.DataType]) -> pa.Table | None:
    """Return the columns of some lines, None where Arrow's reader does not give exactly these types and rows."""
    if any("." in name for name in types):
        return None
    lines = sum(1 for line in text.split("\n") if line and not line.isspace())
    data = text.encode()
    try:
        table = paj.read_json(
            io.BytesIO(data),
            read_options=paj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=paj.ParseOptions(pa.schema(list(types.items())), unexpected_field_behavior="ignore"),
        )
    except UNFIT:
        return None
    return table.select(list(types)) if len(table) == lines else None


class _Names:
    """The columns of a file, to see whether it has the wanted ones."""

    def __init__(self, path: Path, wanted: Wanted):
        self.path, self.wanted, self.missing, self.rows = path, wanted, list(wanted), 0
        self.names: dict[str, None] = {}

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        if self.missing:
            self.missing = [name for name in self.missing if value_at(row, name, MISSING) is MISSING]
            if self.rows <= NAMED:
                self.names |= dict.fromkeys(nested_names(row))

    def check(self) -> None:
        """Raise UserError where there are rows, but none has a wanted column."""
        if self.rows and self.missing:
            name = self.missing[0]
            raise missing_column(name, list(self.names), self.path, self.wanted[name])


class _Column:
    """The kinds of values in a column, with the first place of each. unfit: where a value fits no type of Arrow."""

    def __init__(self, name: str):
        self.name = name
        self.kinds: dict[type, str] = {}
        self.nested: list[pa.DataType] = []
        self.unfit = ""

    def add(self, path: Path, place: str, value: Any) -> None:
        if value is MISSING:
            return
        kind = type(value)
        if kind not in self.kinds:
            self.kinds[kind] = f"{path}, {place}"
        if kind is int and not -(2**63) <= value < 2**63:
            self.unfit = self.unfit or f"{path}, {place}"
        elif kind in (list, dict) and not self.unfit:
            try:
                found = pa.infer_type([value])
                self.unfit = "" if _is_flat(found) else f"{path}, {place}"
                if not self.unfit and found not in self.nested:
                    fields = [pa.schema({"x": each}) for each in [*self.nested, found]]
                    self.nested = [pa.unify_schemas(fields, promote_options="permissive").field("x").type]
            except UNFIT:
                self.unfit = f"{path}, {place}"

    def type(self, wanted: bool) -> pa.DataType:
        kinds = {kind: place for kind, place in self.kinds.items() if kind is not type(None)}
        lists = [kind for kind in kinds if kind not in SCALARS]
        if lists and (len(kinds) > 1 or self.unfit):
            if not wanted:
                return pa.string()
            other = next((kind for kind in kinds if kind not in lists), lists[-1])
            what = f"{SCALARS.get(other, 'another list or object')} ({kinds[other]})"
            here = self.unfit if len(kinds) == 1 else kinds[lists[0]]
            raise UserError(
                f"{here}: column {self.name!r} holds a list or an object here, but elsewhere {what}; give it one type"
            )
        if lists:
            return self.nested[0] if self.nested else pa.string()
        if set(kinds) == {bool}:
            return pa.bool_()
        if kinds and set(kinds) <= {int, float} and not self.unfit and not (wanted and float in kinds):
            return pa.float64() if float in kinds else pa.int64()
        return pa.string()


def _is_flat(kind: pa.DataType, levels: int = DEEPEST) -> bool:
    """Tell whether a type is nested in at most some levels."""
    return levels > 0 and all(_is_flat(kind.field(i).type, levels - 1) for i in range(kind.num_fields))


def _table(path: Path, rows: list[Row], types: dict[str, pa.DataType], wanted: Wanted) -> pa.Table:
    arrays, written = [], None
    for name, kind in types.items():
        values = [value_at(row, name) for _, _, row in rows]
        if kind == pa.string() and any(value is not None and type(value) is not str for value in values):
            written = written or [_as_written(text) for _, text, _ in rows]
            values = [
                json.dumps(value) if isinstance(value, list | dict) else value_at(row, name)
                for value, row in zip(values, written, strict=True)
            ]
            values = [json.dumps(value) if isinstance(value, bool) else value for value in values]
        try:
            arrays.append(pa.array(values, kind))
        except (UnicodeEncodeError, *UNFIT):
            if name not in wanted and kind == pa.string():
                arrays.append(pa.array([v and v.encode("utf-8", "replace").decode() for v in values], kind))
                continue
            for (place, _, _), value in zip(rows, values, strict=True):
                try:
                    pa.array([value], kind)
                except UnicodeEncodeError as error:
                    raise UserError(f"{path}, {place}: column {name!r} holds half a character (a lone surrogate, "
                                    "\\ud800 to \\udfff); correct it") from error  # fmt: skip
                except UNFIT as error:
                    raise UserError(
                        f"{path}, {place}: column {name!r} holds {json.dumps(value)[:80]}, but the column holds "
                        f"{kind}; give it one type"
                    ) from error
            raise
    return pa.table(arrays, names=list(types))


def _as_written(text: str) -> dict[str, Any]:
    row = WRITTEN.decode(text)
    return row if isinstance(row, dict) else {"text": row}


def _all_rows(path: Path) -> Iterator[Row]:
    for number, text in text_blocks(path):
        if number == 1 and text.lstrip().startswith("["):
            yield from _items(path)
            return
        yield from _rows(path, number, text)


def _rows(path: Path, first: int, text: str) -> Iterator[Row]:
    """Yield the rows of a block of lines. first: the number of the first line."""
    for number, line in enumerate(text.split("\n"), start=first):
        if line and not line.isspace():
            place = f"line {number}"
            yield place, line, _object(path, place, _parse(path, number, line))


def _items(path: Path) -> Iterator[Row]:
    """Yield the items of a file that is one JSON array; it is in memory as a whole."""
    text = "".join(text for _, text in text_blocks(path))
    end = text.index("[")
    for number, item in enumerate(_parse(path, 1, text), start=1):
        begin = BLANKS.match(text, end + 1).end()  # type: ignore
        _, end = WRITTEN.raw_decode(text, begin)
        place, source = f"item {number}", text[begin:end]
        end = BLANKS.match(text, end).end()  # type: ignore
        yield place, source, _object(path, place, item)


def _object(path: Path, place: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    kind = "null" if value is None else "a list" if isinstance(value, list) else SCALARS[type(value)]
    raise UserError(f'{path}, {place}: holds {kind}, not an object such as {{"text": "..."}}')


def _parse(path: Path, first: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, place = first + error.lineno - 1, error.colno
        comma = text[: error.pos].rstrip().endswith("}") and text[error.pos :].strip() == ","
        what = "a comma follows the object; remove it" if comma else f"not JSON: {error.msg} at character {place}"
        alone = error.lineno == 1 and text.strip() in ("{", "[")
        mend = "; write each object in one line (jq -c . OLD > NEW)" if alone else ""
        raise UserError(f"{path}, line {line}: {what}{mend}") from error
    except RecursionError as error:
        raise UserError(f"{path}, line {first}: its lists or objects are nested too deeply; remove them") from error
    except ValueError:  # a number with more digits than Python reads
        return WRITTEN.decode(text)


def _written_keys(column: str) -> list[set[str]]:
    """Return how each key that leads to a column may be written: as it is, or with escapes such as \\u00e9."""
    keys = {column}
    while "." in column:
        head, _, column = column.partition(".")
        keys |= {head, column}
    written = []
    for key in sorted(keys):
        escaped = json.dumps(key)
        capitals = re.sub(r"\\u[0-9a-f]{4}", lambda found: f"\\u{found[0][2:].upper()}", escaped)
        written.append({json.dumps(key, ensure_ascii=False), escaped, capitals})
    return written


class _Pairs(dict):
    """An object that knows the keys it has twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.twice = {key for key, count in Counter(key for key, _ in pairs).items() if count > 1}


def _check_twice(path: Path, place: str, text: str, column: str) -> None:
    """Raise UserError when a key that leads to a column is there twice; JSON readers would take the last."""
    inner, rest = json.loads(text, object_pairs_hook=_Pairs, parse_int=str), column
    while isinstance(inner, _Pairs):
        key = rest if rest in inner else rest.partition(".")[0]
        if key in inner.twice:
            raise UserError(f"{path}, {place}: the key {key!r} is there twice; keep one")
        inner, rest = inner.get(key), rest[len(key) + 1 :]
