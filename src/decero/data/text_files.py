"""Read text from local files: txt, jsonl, csv, tsv and parquet, compressed or not."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from decero.data import delimited, plain_text
from decero.data.cache_errors import writing_cache
from decero.data.column_names import Wanted
from decero.data.file_builder import LocalFiles
from decero.data.file_bytes import content_hash
from decero.data.file_paths import SPLITS, find_files
from decero.data.stream import READING
from decero.errors import UserError, root_line

__all__ = ["SPLITS", "find_files", "open_files", "read_files"]


def read_files(
    split: str,
    patterns: str | list[str],
    sample_by: str,
    wanted: Wanted | None = None,
    rest: bool = True,
    form: str | None = None,
    setting: str = "",
) -> Dataset:
    """Read a split's files to a memory-mapped data set, cached by the files' contents. Raises UserError.

    wanted: columns that must be there, each with its setting; rest: read all other columns, too, if possible.
    form: read all files as this format, whatever their names. setting: the one that names them, for messages.
    """
    found, paths = find_files(split, patterns, form, setting)
    builder = _builder(found, paths, sample_by, wanted or {}, rest, [content_hash(path) for path in paths])
    try:
        with writing_cache():
            builder.download_and_prepare()
            features = builder.info.features
            if builder.info.splits["train"].num_examples == 0:
                return Dataset.from_dict({name: [] for name in features}, features=features)
            return builder.as_dataset("train")
    except READING as error:
        raise UserError(f"{paths[0]}: cannot read it as {found}: {root_line(error)}") from error


def open_files(form: str, paths: list[Path], sample_by: str, wanted: Wanted, stored: bool = False) -> Any:
    """Return the wanted columns of files of one format as an iterable data set. Raises UserError.

    stored: the rows will be written to the cache, so its key needs the files' contents.
    """
    hashes = [content_hash(path) for path in paths] if stored else []
    return _builder(form, paths, sample_by, wanted, False, hashes, sample=True).as_streaming_dataset("train")


def _builder(
    form: str, paths: list[Path], sample_by: str, wanted: Wanted, rest: bool, hashes: list[str], sample: bool = False
) -> LocalFiles:
    for path in paths:  # on every call, so that guesses are printed for cached files, too
        if form in ("csv", "tsv"):
            delimited.find_layout(path, form, wanted, rest)
        if form == "txt":
            plain_text.check_text_alone(path, wanted)
    with writing_cache():
        return LocalFiles(
            dataset_name=form, form=form, paths=[str(path) for path in paths], wanted=wanted, rest=rest,
            sample_by=sample_by if form == "txt" else "", hashes=hashes, sample=sample,
        )  # fmt: skip
