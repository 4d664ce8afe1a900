"""Load a data set of the hub, or a folder with the layout of one."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_dataset_builder

from decero.data.cache_errors import chain_of, writing_cache
from decero.data.column_names import Wanted, value_at
from decero.data.embedded import EMBEDDED
from decero.data.file_bytes import extension
from decero.data.file_paths import FORMATS, SPLITS
from decero.data.text_files import find_files, open_files, read_files
from decero.errors import UserError, did_you_mean

OWN_READER = ("csv", "json", "text", "parquet")  # builders of `datasets` for files that decero reads itself


def read_hub(
    name: str, config_name: str | None, revision: str | None, streaming: bool, max_rows: int | None, wanted: Wanted,
    rest: bool,
) -> DatasetDict:  # fmt: skip
    """Load the splits of a data set, at most `max_rows` rows of each. Raises UserError.

    streaming: write the rows to disk as they arrive. wanted, rest: columns, as in `read_files`.
    """
    if streaming:
        splits = open_hub(name, config_name, revision, list(wanted), stored=True)
        try:
            return DatasetDict({split: keep_rows(splits[split], max_rows) for split in SPLITS if split in splits})
        except Exception as error:
            raise _load_error(name, error) from error
    if folder := _local_files(name, config_name):
        found = {split: read_files(split, paths, "line", wanted, rest) for split, paths in folder.items()}
    else:
        found = {split: _flat(rows, list(wanted)) for split, rows in _load(name, config_name, revision, False).items()}
    return DatasetDict({s: d.select(range(min(max_rows or len(d), len(d)))) for s, d in found.items()})


def open_hub(
    name: str, config_name: str | None, revision: str | None, columns: list[str], stored: bool = False
) -> dict[str, Any]:
    """Open the splits of a data set as iterable ones. Raises UserError.

    stored: train, too, will be written to the cache; the other splits always are.
    """
    if folder := _local_files(name, config_name):
        wanted = dict.fromkeys(columns, "data.text_column")
        return {
            split: open_files(*find_files(split, paths), "line", wanted, stored or split != "train")
            for split, paths in folder.items()
        }
    return {split: _flat(rows, columns) for split, rows in _load(name, config_name, revision, True).items()}


def keep_rows(stream: Any, max_rows: int | None) -> Dataset:
    """Write a stream to Arrow on disk as it arrives; only a few rows are in memory at a time."""

    def rows() -> Iterator[dict]:
        yield from itertools.islice(stream, max_rows)

    with writing_cache():
        return Dataset.from_generator(rows, features=stream.features)


def _load(name: str, config_name: str | None, revision: str | None, streaming: bool) -> Any:
    try:
        with writing_cache():
            return load_dataset(name, config_name, revision=revision, streaming=streaming)
    except Exception as error:  # the hub client raises dozens of types; a user sees one line for each
        raise _load_error(name, error) from error


def _local_files(name: str, config_name: str | None) -> dict[str, list[str]]:
    """Return the files of a local folder by split, if decero reads their format and the folder sets no options."""
    if not Path(name).is_dir():
        return {}
    try:
        builder = load_dataset_builder(name, config_name)
    except Exception as error:
        raise _load_error(name, error) from error
    config: Any = builder.config
    names = {field.name for field in dataclasses.fields(config)} - {"name", "version", "data_files", "data_dir", "sep"}
    plain = builder.name in OWN_READER and config.data_files
    if not plain or any(getattr(config, each) != getattr(type(config)(), each) for each in names):
        return {}
    files = {str(split): [str(path) for path in paths] for split, paths in config.data_files.items()}
    every = [Path(path) for paths in files.values() for path in paths]
    if not all(path.is_file() and extension(path)[0] in FORMATS for path in every):
        return {}
    return {split: files[split] for split in SPLITS if split in files} or files


def _flat(rows: Any, columns: list[str]) -> Any:
    """Give a nested column that `columns` names with a dot that name."""
    names = rows.column_names or []
    nested = [column for column in columns if column not in names and column.partition(".")[0] in names]
    if not nested:
        return rows
    if isinstance(rows, Dataset):
        return rows.flatten()
    features = Features({column: Value("string") for column in nested})
    return rows.map(_pick, fn_kwargs={"columns": nested}, remove_columns=names, features=features)


def _pick(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    return {column: value_at(row, column) for column in columns}


def _load_error(name: str, error: Exception) -> UserError:
    for cause in chain_of(error):
        if isinstance(cause, UserError):
            return cause
    fix = f"give an embedded corpus ({', '.join(EMBEDDED)}), a hub data set or data.files"
    near = did_you_mean(name, EMBEDDED)
    first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return UserError(f"data.name: {name} could not be loaded{near}: {first}; {fix}")
