"""Write the settings of a run to config.yaml; when it is resumed, check that they are the same."""

import os
import re
from pathlib import Path
from typing import Any

from decero.config.run_config import RunConfig
from decero.config.yaml_files import read_yaml
from decero.errors import UserError

# Settings that name places or helpers. They do not change the result, so they may differ when a run is resumed.
PLACES = (
    "output", "hub", "tracking", "training.dataloader_num_workers", "training.num_processes", "training.ddp_timeout",
    "data.num_proc",
)  # fmt: skip
PATHS = r"(\.config|\.name_or_path|\.name|\.files\.\w+|\.parallel\.\w+)$"  # settings that may hold a path


def record_settings(record: Path, config: RunConfig, keep: bool) -> None:
    """Write the settings to `record`. keep: they must be those that it holds; comments and places may differ.

    Raises UserError when a setting differs, and when the recorded settings cannot be read.
    """
    text = config.to_yaml()
    if keep:
        recorded, settings = _read(record, config), config.model_dump()
        if changed := changed_setting(recorded, settings):
            raise UserError(
                f"output: {config.output} holds a run with other settings (here: {changed}); use the same ones, or "
                "give another output=FOLDER"
            )
        if recorded == settings:
            return
        if not config.call.notes:
            text = "".join(f"{line}\n" for line in comments(record)) + text
    temporary = record.with_name(f".{record.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(record)


def same_settings(record: Path, config: RunConfig) -> bool:
    """Return whether `record` can be read and holds these settings, perhaps with other places."""
    try:
        return changed_setting(_read(record, config), config.model_dump()) is None
    except UserError:
        return False


def comments(record: Path) -> list[str]:
    """Return the comment lines of config.yaml: what --budget found."""
    return [line for line in record.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]


def _read(record: Path, config: RunConfig) -> dict[str, Any]:
    """Return the settings in config.yaml. Settings that were added since get their defaults."""
    try:
        return type(config).load(str(record)).model_dump()
    except UserError:
        try:
            return read_yaml(record)  # perhaps it has a setting that no longer exists; the comparison will name it
        except UserError as error:
            raise UserError(
                f"{error}; the settings of the run are lost: write them into this file again, then --resume"
            ) from None


def changed_setting(old: Any, new: Any, key: str = "") -> str | None:
    """Return the first setting that differs, as `optim.learning_rate: 0.1`; None if the settings are the same.

    Two spellings of one existing path are the same: `data/a.txt`, `./data/a.txt`, `/home/me/data/a.txt`.
    """
    if key in PLACES or old == new or (re.search(PATHS, key) and _same_path(old, new)):
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        found = (changed_setting(old.get(n), new.get(n), f"{key}.{n}" if key else str(n)) for n in names)
        return next(filter(None, found), None)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return next(filter(None, (changed_setting(a, b, key) for a, b in zip(old, new, strict=True))), None)
    return f"{key}: {new}"


def _same_path(old: Any, new: Any) -> bool:
    """Tell whether two strings name one file, folder or pattern of files that exists here."""
    if not (isinstance(old, str) and isinstance(new, str)) or os.path.realpath(old) != os.path.realpath(new):
        return False
    return os.path.exists(new) or "*" in new
