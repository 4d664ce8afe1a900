"""Find the files of a split: paths, globs and folders, and the kind of each file."""

import glob
import os
import sys
from functools import cache
from pathlib import Path

from decero.data.file_bytes import extension, special_kind
from decero.data.public_sets import BY_HAND, PUBLIC_SETS
from decero.errors import UserError, did_you_mean

SPLITS = ("train", "validation", "test")
FORMATS = {"txt": "txt", "text": "txt", "jsonl": "jsonl", "json": "jsonl", "ndjson": "jsonl"}
FORMATS |= {"csv": "csv", "tsv": "tsv", "parquet": "parquet", "conll": "conll"}


@cache
def note(line: str) -> None:
    """Print a guess about a file on standard error, once, in one process of each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"note: {line}\n")


def path_of(name: str) -> Path:
    """Return a path. In the module of a builder, `datasets` replaces Path by one that reads `::` as an archive."""
    return Path(name)


def find_files(
    split: str, patterns: str | list[str], form: str | None = None, setting: str = ""
) -> tuple[str, list[Path]]:  # fmt: skip
    """Return the format of a split's files (`jsonl`, ...) and their paths. Raises UserError for mixed or empty files.

    form: read all files as this format, whatever their names. setting: the one that names them; data.files.SPLIT.
    """
    key = "parallel" if form else "data.files"
    if split not in SPLITS:
        near = did_you_mean(split, SPLITS, f"{key}.")
        raise UserError(f"{key}.{split}: unknown split{near or '; use train'}")
    each, setting = [patterns] if isinstance(patterns, str) else patterns, setting or f"{key}.{split}"
    if not each or not all(each):
        raise UserError(f"{setting}: no path is given; name a file, a glob or a folder")
    found = [(path, _format(path, pattern, setting, form)) for pattern in each for path in _expand(pattern, setting)]
    paths, formats = [path for path, _ in found], {form for _, form in found}
    if len(formats) > 1:
        kinds = sorted({extension(path)[0] for path in paths})
        raise UserError(f"{setting} mixes {', '.join(kinds)}; give one kind of file per split")
    if empty := next((path for path in paths if path.stat().st_size == 0), None):
        raise UserError(f"{empty}: the file is empty; give it text, or remove it from {setting}")
    return formats.pop(), paths


def _format(path: Path, pattern: str, setting: str, form: str | None) -> str:
    """Return the format that a file's name says. A file with an unknown suffix is text if the pattern spells it."""
    suffix = extension(path)[0]
    if form and FORMATS.get(suffix, form) != form:
        raise UserError(f"{path}: {setting} takes files with a text a line; name the columns of a {suffix} file with "
                        "files, source_column and target_column")  # fmt: skip
    if form or suffix in FORMATS:
        return form or FORMATS[suffix]
    if suffix != extension(Path(pattern))[0]:
        raise UserError(f"{path}: not a txt, jsonl, csv, tsv or parquet file  ({setting})")
    note(f"{path}: read as txt, because {f'.{suffix}' if suffix else 'no suffix'} names no format")
    return "txt"


def _expand(pattern: str, setting: str) -> list[Path]:
    """Return the files of a path, folder or glob, sorted. An existing path is no glob, even with `[` in its name."""
    try:
        path = Path(os.path.expanduser(pattern))
        found, kind = _files(path), special_kind(path) if path.exists() else ""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{getattr(error, 'filename', None) or pattern}: {reason}  ({setting})") from error
    if found:
        return found
    if kind == "a folder":
        raise UserError(f"{pattern}: the folder has no txt, jsonl, csv, tsv or parquet file  ({setting})")
    if kind:
        raise UserError(f"{pattern}: this is {kind}, not a file; write its text to a file  ({setting})")
    if path.is_symlink():
        raise UserError(f"{pattern}: a symbolic link that leads to no file; name the file  ({setting})")
    try:
        siblings = sorted(each.name for each in path.parent.iterdir() if each.is_file() or each.is_dir())
    except OSError:
        siblings = []
    near = did_you_mean(path.name, siblings, f"{path.parent}/") or _fetch(path)
    raise UserError(f"{pattern}: no such file{near or '; name a file, a glob or a folder'}  ({setting})")


def _fetch(path: Path) -> str:
    """Return the command that fetches the set of `data/NAME/...`, or says how to make it; "" for other folders."""
    folder = path.parent
    if folder.parent.name != "data" or folder.exists() or folder.name not in (*PUBLIC_SETS, *BY_HAND):
        return ""
    command = f"decero data {folder.name}"
    return (
        f"; {command} says what to put there"
        if folder.name in BY_HAND
        else (f"; fetch a public data set like it with: {command}")
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        walk = os.walk(path, onerror=_refuse)
        inside = (Path(folder, name) for folder, _, names in walk for name in names)
        return sorted(each for each in inside if extension(each)[0] in FORMATS and each.is_file())
    if path.exists() or path.is_symlink():
        return []
    names = glob.glob(str(path), recursive=True, include_hidden=True)
    return sorted(each for each in map(Path, names) if each.is_file())


def _refuse(error: OSError) -> None:
    """Stop at a folder that cannot be read; `os.walk` would leave out its files."""
    raise error
