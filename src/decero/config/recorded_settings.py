"""Write the settings of a run to config.yaml; when it is resumed, check that they are the same."""

import json
import os
import re
from pathlib import Path
from typing import Any

from decero.config.run_config import RunConfig
from decero.config.yaml_files import read_yaml
from decero.errors import UserError
from decero.files import write_whole

# Settings that name places or helpers, or how much is computed at once. They do not change the result, so they may
# differ when a run is resumed.
PLACES = (
    "output", "hub", "tracking", "training.dataloader_num_workers", "training.num_processes", "training.ddp_timeout",
    "training.per_device_eval_batch_size", "data.num_proc",
)  # fmt: skip
PLACES_FILE = ".places.json"  # beside config.yaml: the working folder, and the sizes of the files that it names
PATHS = (  # settings that may hold a path
    r"(\.config|\.name_or_path|\.name|\.files\.\w+|\.parallel\.\w+|\.teacher|\.unlabelled_files)$"
)


def record_settings(record: Path, config: RunConfig, keep: bool) -> None:
    """Write the settings to `record`. keep: they must be those that it holds; comments and places may differ.

    Sections in `may_grow` may have new names. Then result.json is removed, because it lacks them.

    Raises UserError when a setting differs, and when the recorded settings cannot be read.
    """
    text = config.to_yaml()
    if keep:
        recorded, settings = _read(record, config), config.model_dump()
        before = {name: _known(recorded.get(name), settings[name]) for name in config.may_grow}
        if changed := changed_setting(recorded, settings | before, places=_places_of(record)):
            raise UserError(
                f"output: {config.output} holds a run with other settings (here: {changed}); use the same ones, or "
                "give another output=FOLDER"
            )
        if recorded == settings:
            return
        if settings | before != settings:
            record.with_name("result.json").unlink(missing_ok=True)
        if not config.call.notes:
            text = "".join(f"{line}\n" for line in comments(record)) + text
    write_whole(record, text)
    write_whole(record.with_name(PLACES_FILE), json.dumps(_places(config.model_dump())) + "\n")


def _known(old: Any, new: dict[str, Any]) -> dict[str, Any]:
    """Return what `new` has of the names in `old`."""
    return {name: value for name, value in new.items() if name in old} if isinstance(old, dict) else new


def same_settings(record: Path, config: RunConfig) -> bool:
    """Return whether `record` can be read and holds these settings, perhaps with other places."""
    try:
        return changed_setting(_read(record, config), config.model_dump(), places=_places_of(record)) is None
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


def changed_setting(old: Any, new: Any, key: str = "", places: dict[str, Any] | None = None) -> str | None:
    """Return the first setting that differs, as `optim.learning_rate: 0.1`; None if the settings are the same.

    Two spellings of one existing path are the same: `data/a.txt`, `./data/a.txt`, `/home/me/data/a.txt`. So is a file
    that was moved: one of the same name and size, where the old one is gone.
    places: from where paths are to be read, and the sizes of files, when the settings were recorded.
    """
    if key in PLACES or old == new:
        return None
    if re.search(PATHS, key):
        lists = [[value] if isinstance(value, str) else value for value in (old, new)]
        paired = all(isinstance(each, list) for each in lists) and len(lists[0]) == len(lists[1])
        if paired and all(_same_path(a, b, places or {}) for a, b in zip(*lists, strict=True)):
            return None
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        found = (changed_setting(old.get(n), new.get(n), f"{key}.{n}" if key else str(n), places) for n in names)
        return next(filter(None, found), None)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return next(filter(None, (changed_setting(a, b, key, places) for a, b in zip(old, new, strict=True))), None)
    return f"{key}: {new}"


def _same_path(old: Any, new: Any, places: dict[str, Any]) -> bool:
    """Tell whether two strings name one file, folder or pattern of files that exists here, perhaps moved."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    if old == new:
        return True
    before = os.path.join(str(places.get("folder", "")), old)
    if os.path.realpath(before) == os.path.realpath(new):
        return os.path.exists(new) or "*" in new
    size = (places.get("bytes") or {}).get(old)
    moved = os.path.basename(old.rstrip("/")) == os.path.basename(new.rstrip("/")) and not os.path.exists(before)
    return moved and size is not None and size == _size(new)


def _places(settings: Any, key: str = "") -> dict[str, Any]:
    """Return the working folder, and the size of every file and folder that the settings name."""
    sizes: dict[str, int] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{key}.{name}")
        elif isinstance(value, list):
            for item in value:
                walk(item, key)
        elif isinstance(value, str) and re.search(PATHS, key) and (size := _size(value)) is not None:
            sizes[value] = size

    walk(settings, key)
    return {"folder": os.getcwd(), "bytes": sizes}


def _size(path: str) -> int | None:
    """Return the bytes of a file, or of the files of a folder; None for anything else."""
    try:
        if os.path.isdir(path):
            return sum(os.path.getsize(each.path) for each in os.scandir(path) if each.is_file())
        return os.path.getsize(path) if os.path.isfile(path) else None
    except (OSError, ValueError):
        return None


def _places_of(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.with_name(PLACES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run of an earlier version, or a damaged file
        return {}
    return found if isinstance(found, dict) else {}
