"""Read text from local files: txt, jsonl, csv, tsv and parquet, compressed or not."""

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from decero.data.stream import READING
from decero.errors import UserError, did_you_mean, root_line

SPLITS = ("train", "validation", "test")
BUILDERS = {"txt": "text", "text": "text", "jsonl": "json", "json": "json", "ndjson": "json"}
BUILDERS |= {"csv": "csv", "tsv": "csv", "parquet": "parquet"}
COMPRESSED = {"gz", "zst", "bz2", "xz"}
STREAMED_ROWS = 1000  # rows of a Parquet file in memory at once; a row group may be the whole file


def read_files(split: str, patterns: str | list[str], sample_by: str) -> Dataset:
    """Read a split's files, after checking that text files are UTF-8. Raises UserError."""
    kind, paths = find_files(split, patterns)
    if kind != "parquet":
        for path in paths:
            _check_utf8(path)
    return open_files(kind, paths, sample_by)


def find_files(split: str, patterns: str | list[str]) -> tuple[str, list[Path]]:
    """Return the kind of a split's files (`jsonl`, ...) and their paths. Raises UserError for mixed or empty files."""
    if split not in SPLITS:
        near = did_you_mean(split, SPLITS, "data.files.")
        raise UserError(f"data.files.{split}: unknown split{near or '; use train'}")
    paths = [p for pattern in ([patterns] if isinstance(patterns, str) else patterns) for p in _expand(pattern, split)]
    kinds = {_extension(p) for p in paths}
    if len({BUILDERS[k] for k in kinds}) > 1 or kinds >= {"csv", "tsv"}:
        raise UserError(f"data.files.{split} mixes {', '.join(sorted(kinds))}; give one kind of file per split")
    if empty := next((path for path in paths if path.stat().st_size == 0), None):
        raise UserError(f"{empty}: the file is empty; give it text, or remove it from data.files")
    return kinds.pop(), paths


def open_files(kind: str, paths: list[Path], sample_by: str, streaming: bool = False) -> Any:
    """Load files of one kind as a data set or, if `streaming`, as an iterable one. Raises UserError."""
    # utf-8-sig: a byte order mark is not part of the text
    options = {
        "text": {"sample_by": sample_by, "encoding": "utf-8-sig"},
        "csv": {"sep": "\t" if kind == "tsv" else ",", "encoding": "utf-8-sig"},
    } | ({"parquet": {"batch_size": STREAMED_ROWS}} if streaming else {})
    builder = BUILDERS[kind]
    names = [str(p) for p in paths]
    try:
        return load_dataset(builder, data_files=names, split="train", streaming=streaming, **options.get(builder, {}))
    except READING as error:
        raise UserError(f"{names[0]}: cannot read it as {kind}: {root_line(error)}") from error


def _extension(path: Path) -> str:
    suffixes = [s.lstrip(".").lower() for s in path.suffixes]
    return next((s for s in reversed(suffixes) if s not in COMPRESSED), "")


def _expand(pattern: str, split: str) -> list[Path]:
    """Return the files of a path, folder or glob, sorted."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and _extension(p) in BUILDERS]
    elif path.is_file():
        found = [path]
    else:
        root = Path(path.anchor or ".")
        found = [p for p in root.glob(str(path.relative_to(path.anchor))) if p.is_file()]
    if not found:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, siblings, f"{path.parent}/")
        raise UserError(
            f"{pattern}: no such file{near or ', or a folder without txt, jsonl, csv, tsv or parquet'}  "
            f"(data.files.{split})"
        )
    for p in found:
        if _extension(p) not in BUILDERS:
            raise UserError(f"{p}: not a txt, jsonl, csv, tsv or parquet file  (data.files.{split})")
    return sorted(found)


def _check_utf8(path: Path) -> None:
    """Raise UserError at the first line that is not UTF-8; a BOM, `\\r\\n` and any script are fine."""
    if path.suffix.lstrip(".").lower() in COMPRESSED:
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: byte {error.start + 1} is not UTF-8; convert the file, "
                    f"e.g. iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}"
                ) from error
