"""Read the columns of Parquet files. Whatever Arrow type holds text, the result is text."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features

from decero.data.column_names import Wanted, check_names, missing_column
from decero.data.file_bytes import reason
from decero.errors import UserError

ROWS = 1000  # in memory at once; a row group may be the whole file
PICTURES = ("data.image_column", "data.mask_column")  # settings that name columns of bytes, not of text
UNREADABLE = (pa.ArrowException, OSError, ValueError)


def find_features(paths: list[Path], wanted: Wanted, rest: bool) -> Features:
    """Return the features of the wanted columns, and of all others if `rest`.

    Other columns that differ between the files, or whose type `datasets` does not have, are left out.
    Raises UserError: a file that is no Parquet, or lacks a wanted column, or has it with another type.
    """
    features: Features | None = None
    for path in paths:
        found = _features(path, wanted, rest)
        if features is None:
            features = found
        for name in wanted:
            if features[name] != found[name]:
                raise UserError(
                    f"{path}: column {name!r} holds {_kind(found[name])}, but in {paths[0]} {_kind(features[name])}; "
                    "give it one type"
                )
        features = Features({name: each for name, each in features.items() if found.get(name) == each})
    return features or Features()


def row_groups(path: Path) -> int:
    """Return the number of row groups of a file."""
    return _open(path).num_row_groups


def read_table(path: Path, group: int | None, features: Features) -> Iterator[pa.Table]:
    """Yield the columns of a file, or of one of its row groups, ROWS rows at a time.

    Raises UserError for damaged data, and for bytes that are no UTF-8 text.
    """
    schema, file, row = features.arrow_schema, _open(path), 0
    try:
        for number in range(file.num_row_groups) if group is None else [group]:
            for batch in file.iter_batches(ROWS, row_groups=[number], columns=list(features)):
                arrays = [_column(batch, name).cast(schema.field(name).type) for name in features]
                yield pa.table(arrays, schema=schema)
                row += len(batch)
    except UNREADABLE as error:
        raise UserError(f"{path}, after row {row}: cannot read {', '.join(features)}: {reason(error)}") from error


def _features(path: Path, wanted: Wanted, rest: bool) -> Features:
    schema = _open(path).schema_arrow
    check_names(schema.names, schema.names if rest else wanted, path)
    features = {}
    for name, setting in wanted.items():
        if (kind := _type(schema, name)) is None:
            raise missing_column(name, _leaves(schema), path, setting)
        feature = _feature(schema, name, pa.string() if _is_bytes(kind) and setting not in PICTURES else kind)
        if feature is None:
            raise UserError(f"{path}: column {name!r} holds {kind}, which is not supported  (setting: {setting})")
        features[name] = feature
    for field in schema if rest else ():
        if field.name not in features and (feature := _feature(schema, field.name, field.type)) is not None:
            features[field.name] = feature
    return Features(features)


def _feature(schema: pa.Schema, name: str, kind: pa.DataType):
    """Return the feature of a column, None if there is none; the metadata of `datasets` knows names of classes."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_large_string(plain) or pa.types.is_string_view(plain):
        plain = pa.string()
    try:
        if name in schema.names and plain == (field := schema.field(name)).type:
            return Features.from_arrow_schema(pa.schema([field], schema.metadata))[name]
        return Features.from_arrow_schema(pa.schema({name: plain}))[name]
    except (ValueError, KeyError, NotImplementedError):
        return None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column, where `a.b` is the column of that name or else field b of column a."""
    if name in schema.names:
        return schema.field(name).type
    head, _, rest = name.partition(".")
    if not rest or head not in schema.names or not pa.types.is_struct(schema.field(head).type):
        return None
    return _type(pa.schema(list(schema.field(head).type)), rest)


def _leaves(schema: pa.Schema, prefix: str = "") -> list[str]:
    names = []
    for field in schema:
        inner = pa.types.is_struct(field.type)
        name = f"{prefix}{field.name}"
        names += _leaves(pa.schema(list(field.type)), f"{name}.") if inner else [name]
    return names


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name in batch.schema.names:
        return batch.column(name)
    head, _, rest = name.partition(".")
    column = batch.column(head)
    while rest:
        fields = [field.name for field in column.type]
        here, _, rest = (rest, "", "") if rest in fields else rest.partition(".")
        column = pc.struct_field(column, here)
    return column


def _kind(feature) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot read it as parquet: {reason(error)}") from error
