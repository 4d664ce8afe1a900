"""Say what is at a path, and check a folder before a library reads its files."""

import errno
import hashlib
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from decero.errors import UserError, did_you_mean, regular_file

PIPE = "a named pipe"
SPECIAL = {
    stat.S_IFIFO: PIPE, stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
READ_WHOLE = (".json", ".txt", ".jinja", ".model")  # endings of files that libraries read into memory
LARGEST, NO_LIMIT = 2**28, 2**63  # bytes of such a file (the largest tokenizers have a tenth of it), and of others


HUB_NAME = re.compile(r"(?=.{1,96}\Z)\w[\w.-]*(/\w[\w.-]*)?")


def shipped(name: str | Path) -> Path:
    """Return the path of `recipes/NAME.py` or `configs/KIND/NAME.yaml` as it came with decero. It may not exist.

    An installed package holds these folders; in a copy of the repository they are beside src/.
    """
    package = Path(__file__).parent
    return (package if (package / "recipes").is_dir() else package.parents[1]) / name


def own_or_shipped(path: str | Path) -> Path:
    """Return a path; for `configs/...` that is not in the working folder, that of the file that came with decero.

    Raises UserError, with the nearest name, for `configs/...` that is in neither place.
    """
    path = Path(path)
    if path.parts[:1] != ("configs",) or os.path.lexists(path):
        return path
    found = shipped(path)
    if not found.is_file():
        names = {each.name for folder in (path.parent, found.parent) for each in folder.glob(f"*{path.suffix}")}
        raise UserError(f"{path}: no such file{did_you_mean(path.name, sorted(names), f'{path.parent}/')}")
    return found


def check_place(name: str) -> None:
    """Raise UserError for a folder that is not there and whose name cannot be one of a hub repository."""
    if not kind_of(name) and not HUB_NAME.fullmatch(name):
        path = Path(name)
        siblings = [each.name for each in path.parent.glob("*/")] if kind_of(path.parent) == "a folder" else []
        raise UserError(f"{name}: no such folder{did_you_mean(path.name, siblings, f'{path.parent}/')}")


def kind_of(path: Path | str) -> str:
    """Say what is at a path: "a file", "a folder", "a named pipe" ..., or "" for nothing.

    Opens nothing. A name that no file can have, such as one of 300 letters, is nothing.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a zero byte
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a loop of symbolic links"
        if error.errno in ABSENT:
            return ""
        raise
    if stat.S_ISREG(mode):
        return "a file"
    return "a folder" if stat.S_ISDIR(mode) else SPECIAL.get(stat.S_IFMT(mode), "no regular file")


def sha256_of(path: Path) -> Any:
    """Return the hash object of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all; text as UTF-8. An OSError names `path`, not the temporary file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it, if it is there.

    Raises UserError for anything but a folder: `shutil.rmtree` would wait forever for a named pipe.
    """
    if (kind := kind_of(path)) not in ("", "a folder"):
        raise UserError(f"{path}: this is {kind}, where a folder is needed; remove it")
    shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder with what is in it, or anything else that is there: `shutil.rmtree` would wait for a pipe."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_folder(folder: Path | str) -> Path:
    """Return a folder in which every file is a regular one, so that a library may read any of them.

    Other folders and dead links inside are ignored. Raises UserError as `regular_file` does, and for a file of more
    than `LARGEST` bytes that would be read whole.
    """
    folder, kind = Path(folder), kind_of(folder)
    if kind != "a folder":
        raise UserError(f"{folder}: {f'this is {kind}; give a folder' if kind else 'no such folder'}")
    for path in sorted([*folder.iterdir(), *folder.glob("*/*.jinja")]):
        if kind_of(path) not in ("", "a folder"):
            regular_file(path, LARGEST if path.name.endswith(READ_WHOLE) else NO_LIMIT)
    return folder
