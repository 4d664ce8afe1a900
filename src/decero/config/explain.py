"""Explain a mistake in the settings in one line, and print --help."""

import re
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from decero.config.command_line import OPTIONS
from decero.errors import did_you_mean

BRANCH = re.compile(r"str|int|float|bool|(list|dict|tuple|function|literal|constrained|union)\W.*")  # of a union


def explain(cls: type[BaseModel], error: ValidationError, where: str, changed: set[str]) -> str:
    """Describe the first mistake in one line: file, key, nearest valid key, expected value.

    where: the file. changed: keys set on the command line; a mistake in one of them names the command line instead.
    """
    first, more = error.errors(include_url=False)[0], error.error_count() - 1
    keys = [str(k) for k in first["loc"]]
    parent: type[BaseModel] | None = cls
    path: list[str] = []
    for key in keys:
        field = parent.model_fields.get(key) if parent else None
        if parent and field is None and first["type"] != "extra_forbidden":
            break  # the next key names a branch of a union, not a setting
        path.append(key)
        parent = section_of(field.annotation) if field else parent
    while len(path) > 1 and BRANCH.fullmatch(path[-1]):
        path.pop()
    name = ".".join(path)
    valid = list(_parent(cls, keys).model_fields)
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" else ""
    unknown = first["type"] == "extra_forbidden"
    where = (
        "command line"
        if any(_is_about(key, name, said) or (unknown and key.startswith(f"{name}.")) for key in changed)
        else where
    )
    tail = f"  (and {more} more; all settings: --help)" if more else "  (all settings: --help)"
    if unknown:
        prefix = "".join(f"{k}." for k in keys[:-1])
        near = did_you_mean(keys[-1], valid, prefix) or f"; known settings: {', '.join(valid)}"
        for field_name, field in _parent(cls, keys).model_fields.items():
            entry = section_of(field.annotation)
            if get_origin(field.annotation) is dict and entry and keys[-1] in entry.model_fields:
                near = f"; did you mean {prefix}{field_name}.NAME.{keys[-1]}?"
        return f"{where}: unknown setting {name}{near}{tail}"
    if first["type"] == "missing":
        return f"{where}: {name} is missing; add it{tail}"
    if first["type"] == "value_error":
        return f"{where}: {said}{tail}"
    got = first["input"]
    expected = first["msg"][0].lower() + first["msg"][1:]
    if got is None and (missing := re.search(r"\.(\w+):[^.]", f".{name}")):
        return f"{where}: {name}: a space is missing after {missing[1]}:{tail}"
    if isinstance(got, dict) and got and not any(got.values()) and "string" in expected:
        text = ", ".join(map(str, got))
        return f"{where}: {name}: what begins with {{ is a mapping; put the text in quotes: '{{{text}}}'{tail}"
    if isinstance(got, str) and "dictionary" in expected and path[-1] == "files":
        return f"{where}: {name}: name the split; did you mean {name}.train={got}?{tail}"
    near = did_you_mean(str(got), _choices(cls, keys)) if isinstance(got, str) else ""
    return f"{where}: {name} is {got!r}, but {expected}{near}{tail}"


def _is_about(key: str, name: str, said: str) -> bool:
    """Tell whether a mistake in the setting `name`, described by `said`, is about a key of the command line."""
    parts = [part for part in (key, key.rpartition(".")[0]) if "." in part]
    return (
        key == name or name.startswith(f"{key}.") or any(re.search(rf"\b{re.escape(part)}\b", said) for part in parts)
    )


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class of a field, also if optional or the values of a mapping."""
    for part in (annotation, *(a for arg in get_args(annotation) for a in (arg, *get_args(arg)))):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _parent(cls: type[BaseModel], keys: list[str]) -> type[BaseModel]:
    parent = cls
    for key in keys[:-1]:
        field = parent.model_fields.get(key)
        parent = (section_of(field.annotation) if field else None) or parent
    return parent


def _choices(cls: type[BaseModel], keys: list[str]) -> list[str]:
    field = _parent(cls, [*keys[:2], ""][: len(keys)]).model_fields.get(keys[min(len(keys), 2) - 1])
    return [
        a for arg in (get_args(field.annotation) if field else ()) for a in (arg, *get_args(arg)) if isinstance(a, str)
    ]


def _kind(annotation: Any) -> str:
    """Write a type as a reader of --help sees it: without bounds, which the messages give."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin in (Union, UnionType, Literal):
        return " | ".join(repr(part) if origin is Literal else _kind(part) for part in parts)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_kind, parts))}]"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def help_text(cls: type[BaseModel], prefix: str = "") -> str:
    """Return the text of --help: every setting with its type, default and meaning."""
    lines = []
    if not prefix:
        shown = {name: " ".join([name, OPTIONS[name][0]]).strip() for name in cls.options}  # type: ignore[attr-defined]
        lines = [
            f"{Path(sys.argv[0]).name} CONFIG.yaml [key.sub=value ...] {' '.join(f'[{s}]' for s in shown.values())}"
        ]
        lines += ["", *(f"  {text:<16}{OPTIONS[name][1]}" for name, text in shown.items()), ""]
    for name, field in cls.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            is_map = not (isinstance(field.annotation, type) or type(None) in get_args(field.annotation))
            lines.append(help_text(section, f"{prefix}{name}.{'NAME.' if is_map else ''}"))
            continue
        kind = _kind(field.annotation)
        default = "required" if field.is_required() else f"= {field.default!r}"
        lines.append(f"  {prefix}{name}  ({kind}) {default}\n      {field.description or ''}")
    return "\n".join(lines)
