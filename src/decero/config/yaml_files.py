"""YAML files of settings, and `key.sub=value` words laid over them."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from decero.errors import UserError, did_you_mean


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML 1.2 mapping (1e-3 is a number, no is a word). Raises UserError naming the file and line."""
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, beside, f'{path.parent}/')}")
    try:
        settings = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: is no YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no settings; write key: value lines")
    return settings


def yaml_value(word: str, text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        raise UserError(f"command line: {word} is no YAML value; quote it as a shell word") from None


def put(settings: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    for key in keys[:-1]:
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise UserError(f"command line: {word}: {key} holds a value, not further settings")
    settings[keys[-1]] = value
