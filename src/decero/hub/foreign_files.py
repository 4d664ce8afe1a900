"""Read files of a folder that anybody may have written: no pipe, no link out of it, nothing too large or too deep."""

import json
import math
import stat
from pathlib import Path
from typing import Any

from decero.errors import UserError

MOST_BYTES = 64_000_000
DEEPEST = 50  # levels of nesting


def check_sendable(path: Path, home: Path, sent: tuple[str, ...] = ()) -> Path:
    """Return `path` if it may be sent: a regular file that no link brings in from elsewhere.

    A link may lead to a file of the folder `home` that is sent anyway (`sent`: patterns of names) and, in the hub's
    cache, to its `blobs`. Raises UserError for any other link, for a pipe or device, and for a name of odd characters.
    """
    home = home.resolve()
    try:
        target = path.resolve(strict=True)
        regular = stat.S_ISREG(target.stat().st_mode)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        raise UserError(f"{path}: this link leads nowhere; remove it") from None
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    inside = target.parent == home and any(map(Path(target.name).match, sent))
    if path.is_symlink() and target.parent != blobs and not inside:
        raise UserError(f"{path}: this is a link to {target}, which is not sent; replace it with a copy, or remove it")
    if not regular:
        raise UserError(f"{path}: this is no regular file; remove it")
    if not path.name.isprintable():
        raise UserError(f"{str(path)!r}: a name with such characters is not sent; rename the file")
    return path


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a file. Raises UserError: no regular file, too large, not UTF-8."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: this is no regular file")
        if found.st_size > most_bytes:
            raise UserError(f"{path}: {found.st_size:,} bytes; such a file has at most {most_bytes:,}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; NaN and infinities, which are no JSON, are None. Raises UserError."""

    def number(digits: str) -> float | None:
        return float(digits) if math.isfinite(float(digits)) else None

    try:
        found = json.loads(read_text(path), parse_constant=lambda _: None, parse_float=number)
        deep = _is_deep(found)
    except ValueError as error:  # also an integer of 5,000 digits
        raise UserError(f"{path}: invalid JSON: {error}") from None
    except RecursionError:
        deep = True
    if deep:
        raise UserError(f"{path}: values are nested more than {DEEPEST} levels deep")
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object {{...}}")
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, dict | list) for each in level)
