"""Read YAML files of settings, and change them with `key.sub=value` words."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from decero.errors import UserError, regular_file
from decero.files import own_or_shipped

MOST_BYTES = 1_000_000  # of a file: the reader needs about 10 s for it
MOST_VALUES = 100_000  # values of a file, with those that aliases repeat
DEEPEST = 32  # most levels of nesting
COMMENT = re.compile(r"""[^'"\[{\s][^\n]*\s#.*""")  # a plain value, and what YAML takes for a comment
INTEGERS = range(-(2**63), 2**64)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping: 1e-3 is a number and `no` is a string, not false.

    Raises UserError with the file and line if the file is missing, is no regular file, is not YAML, or holds no
    mapping.
    """
    text = read_settings(path)
    settings = _parse(text, str(path))
    if not isinstance(settings, dict):
        raise UserError(f"{path}: contains no settings; write lines of the form key: value")
    return settings


def read_settings(path: str | Path) -> str:
    """Return the text of a settings file; `configs/...` also comes with decero (`own_or_shipped`).

    Raises UserError if it cannot be read or is not UTF-8.
    """
    try:
        return regular_file(own_or_shipped(path), MOST_BYTES).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = f"byte {error.object[error.start]:#04x} is not UTF-8"
        raise UserError(f"{path}, line {line}: cannot read this as YAML: {problem}; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}") from None


def yaml_value(word: str, text: str) -> Any:
    """Parse the value of a `key=value` word; empty is None. Raises UserError if not YAML."""
    if COMMENT.fullmatch(text):
        raise UserError(f"command line: {_short(word)}: what follows ' #' would be lost; put the value in quotes")
    return _parse(text, f"command line: {_short(word)}", "; put it in quotes") if text else None


def put(settings: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    """Set `settings[a][b] = value` for keys [a, b].

    Raises UserError if `settings[a]` is a plain value, and for more than DEEPEST keys.
    """
    if len(keys) > DEEPEST:
        raise UserError(f"command line: {_short(word)}: {len(keys)} levels; settings have at most {DEEPEST}")
    for key in keys[:-1]:
        if settings.get(key) is None:  # a section that is not used, as a recorded config.yaml says
            settings[key] = {}
        settings = settings[key]
        if not isinstance(settings, dict):
            raise UserError(f"command line: {_short(word)}: {key} is a single value and has no settings inside")
    settings[keys[-1]] = value


def _parse(text: str, where: str, fix: str = "") -> Any:
    """Read YAML. Raises UserError for invalid YAML, and for values that no setting can have: see `check_events`."""
    try:
        check_events(YAML(typ="safe", pure=True).parse(text), where)
        found = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:  # ValueError: an integer of 5,000 digits, a date without such a day
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{where}{line}: cannot read this as YAML: {problem}{fix}") from None
    _check_values(found, where)
    return found


def check_events(events: Iterable[Any], where: str) -> None:
    """Refuse nesting beyond DEEPEST, tags, aliases inside what they repeat, and more than MOST_VALUES values.

    The events come before any value is built, so nothing is nested or repeated yet. An alias counts as many values as
    it repeats: a few lines of aliases can stand for billions.
    """
    open_ones: list[tuple[str | None, int]] = []  # anchor, and the number of values before it
    sizes: dict[str, int] = {}
    total = 0
    for event in events:
        problem = None
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_ones.pop()
            sizes |= {anchor: total - before} if anchor else {}
        elif isinstance(event, AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_ones):
                problem = f"alias *{event.anchor} is inside the value that it repeats; write that value out"
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, ScalarEvent | CollectionStartEvent):
            total += 1
            if event.tag is not None:
                problem = f"tags such as {event.tag} are not supported; remove it"
            if isinstance(event, CollectionStartEvent):
                open_ones.append((event.anchor, total - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        if len(open_ones) > DEEPEST:
            problem = f"values are nested more than {DEEPEST} levels deep; settings need fewer"
        elif total > MOST_VALUES:
            problem = f"more than {MOST_VALUES:,} values (aliases count as what they repeat); write fewer"
        if problem:
            raise UserError(f"{where}, line {event.start_mark.line + 1}: {problem}")


def _check_values(value: Any, where: str) -> None:
    """Refuse values that config.yaml cannot hold: integers over 64 bits, text that is not UTF-8, dates, odd keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise UserError(f"{where}: the key {key!r} is no name; write it in quotes")
            _check_values(key, where)
            _check_values(item, f"{where}: {_short(str(key))}")
    elif isinstance(value, list):
        for item in value:
            _check_values(item, where)
    elif isinstance(value, str):
        if "\0" in value or not _is_utf8(value):
            raise UserError(f"{where}: the text {value[:50]!r} holds a NUL character or is not UTF-8; correct it")
    elif isinstance(value, int):
        if value not in INTEGERS:
            raise UserError(f"{where}: an integer of {value.bit_length()} bits; give one of at most 64 bits")
    elif not isinstance(value, float | None):
        raise UserError(f"{where}: {value} is read as a {type(value).__name__}; put it in quotes")


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:  # half of a surrogate pair, or a byte of a command line that is not UTF-8
        return False


def _short(word: str) -> str:
    return word if len(word) <= 200 else f"{word[:200]}..."
