"""Text in local files: txt, jsonl, csv, tsv and parquet, compressed or not."""

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from decero.data.stream import READING
from decero.errors import UserError, did_you_mean, root_line

SPLITS = ("train", "validation", "test")
BUILDERS = {"txt": "text", "text": "text", "jsonl": "json", "json": "json", "ndjson": "json"}
BUILDERS |= {"csv": "csv", "tsv": "csv", "parquet": "parquet"}
COMPRESSED = {"gz", "zst", "bz2", "xz"}
STREAMED_ROWS = 1000  # of a Parquet file that are held at once; a row group may be the whole file


def read_files(split: str, patterns: str | list[str], sample_by: str) -> Dataset:
    kind, paths = find_files(split, patterns)
    if kind != "parquet":
        for path in paths:
            _check_utf8(path)
    return open_files(kind, paths, sample_by)


def find_files(split: str, patterns: str | list[str]) -> tuple[str, list[Path]]:
    """The kind of a split's files, and the files."""
    if split not in SPLITS:
        raise UserError(f"data.files.{split} is no split{did_you_mean(split, SPLITS, 'data.files.') or '; use train'}")
    paths = [p for pattern in ([patterns] if isinstance(patterns, str) else patterns) for p in _expand(pattern, split)]
    kinds = {_extension(p) for p in paths}
    if len({BUILDERS[k] for k in kinds}) > 1 or kinds >= {"csv", "tsv"}:
        raise UserError(f"data.files.{split} mixes {', '.join(sorted(kinds))}; give one kind of file a split")
    if empty := next((path for path in paths if path.stat().st_size == 0), None):
        raise UserError(f"{empty}: is empty; give it text, or leave it out of data.files")
    return kinds.pop(), paths


def open_files(kind: str, paths: list[Path], sample_by: str, streaming: bool = False) -> Any:
    # utf-8-sig: a byte order mark is no text
    options = {
        "text": {"sample_by": sample_by, "encoding": "utf-8-sig"},
        "csv": {"sep": "\t" if kind == "tsv" else ",", "encoding": "utf-8-sig"},
    } | ({"parquet": {"batch_size": STREAMED_ROWS}} if streaming else {})
    builder = BUILDERS[kind]
    names = [str(p) for p in paths]
    try:
        return load_dataset(builder, data_files=names, split="train", streaming=streaming, **options.get(builder, {}))
    except READING as error:
        raise UserError(f"{names[0]}: cannot be read as {kind}: {root_line(error)}") from error


def _extension(path: Path) -> str:
    suffixes = [s.lstrip(".").lower() for s in path.suffixes]
    return next((s for s in reversed(suffixes) if s not in COMPRESSED), "")


def _expand(pattern: str, split: str) -> list[Path]:
    """The files that a path, folder or glob stands for, in a fixed order."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and _extension(p) in BUILDERS]
    elif path.is_file():
        found = [path]
    else:
        root = Path(path.anchor or ".")
        found = [p for p in root.glob(str(path.relative_to(path.anchor))) if p.is_file()]
    if not found:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside, f"{path.parent}/")
        raise UserError(
            f"{pattern}: no such file{near or ', or no txt, jsonl, csv, tsv or parquet in it'}  (data.files.{split})"
        )
    for p in found:
        if _extension(p) not in BUILDERS:
            raise UserError(f"{p}: is neither txt, jsonl, csv, tsv nor parquet  (data.files.{split})")
    return sorted(found)


def _check_utf8(path: Path) -> None:
    """Name the file and line of the first bytes that are not UTF-8; a BOM, `\\r\\n` and any script are fine."""
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
