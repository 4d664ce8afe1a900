"""Read YAML files of settings, and change them with `key.sub=value` words."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from decero.errors import UserError, did_you_mean


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping: 1e-3 is a number and `no` is a string, not false.

    Raises UserError with the file and line if the file is missing, is not YAML, or holds no mapping.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, siblings, f'{path.parent}/')}")
    try:
        settings = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: cannot read this as YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: contains no settings; write lines of the form key: value")
    return settings


def yaml_value(word: str, text: str) -> Any:
    """Parse the value of a `key=value` word; empty is None. Raises UserError if not YAML."""
    try:
        return YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        raise UserError(f"command line: cannot read {word} as YAML; put it in quotes") from None


def put(settings: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    """Set `settings[a][b] = value` for keys [a, b].

    Raises UserError if `settings[a]` is a plain value.
    """
    for key in keys[:-1]:
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise UserError(f"command line: {word}: {key} is a single value and has no settings inside")
    settings[keys[-1]] = value
