"""Columns by name. A dot leads into a nested column: `translation.en`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from decero.errors import UserError, did_you_mean

Wanted = dict[str, str]  # column -> the setting that names it


def missing_column(column: str, columns: Sequence[str], where: Any, setting: str) -> UserError:
    """Return the error for a column that is not there; it names the nearest one."""
    near = did_you_mean(column, columns)
    names = ", ".join(columns)
    return UserError(f"{where}: there is no column {column!r}{near or f'; columns: {names}'}  (setting: {setting})")


def check_names(names: Sequence[str], wanted: Iterable[str], where: Any) -> None:
    """Raise UserError for a wanted column that has two fields: which one is meant is not known."""
    counts = Counter(names)
    for column in wanted:
        if counts[column] > 1:
            fields = ", ".join(str(place) for place, name in enumerate(names, start=1) if name == column)
            raise UserError(f"{where}: several columns are named {column!r} (fields {fields}); rename all but one")


def value_at(row: dict[str, Any], column: str, default: Any = None) -> Any:
    """Return the value of a column, where `a.b` is the column of that name or else field b of column a."""
    if column in row or "." not in column:
        return row.get(column, default)
    head, _, rest = column.partition(".")
    inner = row.get(head)
    return value_at(inner, rest, default) if isinstance(inner, dict) else default


def nested_names(row: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of a row's columns; those of a nested one with a dot."""
    names = []
    for name, value in row.items():
        names += nested_names(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return names
