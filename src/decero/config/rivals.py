"""Let a value on the command line replace what contradicts it in the file."""

from collections.abc import Iterable
from typing import Any

RIVALS = (  # settings of one section of which exactly one may be given
    ("name", "files", "parallel"),
    ("config", "name_or_path", "pretrained"),
    ("max_train_steps", "num_train_epochs"),
    ("global_batch_size", "global_batch_tokens"),
    ("per_device_batch_size", "per_device_tokens"),
)
PARTS = {  # mean nothing alone
    "name": ("config_name", "revision"),
    "name_or_path": ("revision", "trust_remote_code"),
    "config": ("overrides",),
}
HELD_OUT = ("validation", "test")
ENTRIES = ("contenders", "tasks", "files", "parallel", "tune")  # mappings with names that the user chooses


def rivals_of(name: str) -> set[str]:
    """Return the settings of the same section that this one excludes."""
    return {rival for group in RIVALS if name in group for rival in group} - {name}


def displace(settings: dict[str, Any], changed: Iterable[str], own_texts: bool = True) -> list[str]:
    """Remove from `settings` the rivals of the changed keys, unless they were changed, too. Return a line for each.

    `data.files.train=x` on the command line removes `data.name` of the file, and its files of other splits, which hold
    other data. A null entry of a mapping, such as `contenders.ours=null`, removes the entry.
    own_texts: False where the splits are for different uses, as in a measurement; then the other files stay.
    """
    changed, lines = list(changed), []
    given = {".".join(key.split(".")[:depth]) for key in changed for depth in range(1, key.count(".") + 2)}
    for key in changed:
        section, path = settings, key.split(".")
        for depth, name in enumerate(path):
            if not isinstance(section, dict) or name not in section:
                break
            if section[name] is None:
                if depth and path[depth - 1] in ENTRIES:
                    del section[name]
                break
            prefix = ".".join(path[:depth])
            for rival in sorted(rivals_of(name) & section.keys()):
                place = f"{prefix}.{rival}".lstrip(".")
                if section[rival] is not None and place not in given:
                    lost = [place]
                    for part in PARTS.get(rival, ()):
                        lost += _without(section, part, f"{prefix}.{part}".lstrip("."), given)
                    del section[rival]
                    lines.append(f"{'.'.join(path[: depth + 1])} on the command line replaces {' and '.join(lost)}")
            if own_texts and path[depth : depth + 2] == ["files", "train"] and section[name].get("train"):
                others = [split for split in HELD_OUT if section[name].get(split)]
                places = [place for split in others if (place := f"{'.'.join(path[: depth + 1])}.{split}") not in given]
                for place in places:
                    del section[name][place.rpartition(".")[2]]
                if places:
                    lines.append(f"{'.'.join(path)} on the command line replaces {' and '.join(places)}")
            section = section[name]
    return lines


def _without(section: dict[str, Any], part: str, place: str, given: set[str]) -> list[str]:
    """Remove a part of a rival, but not what the command line gives. Return its place if it had entries."""
    value = section.get(part)
    kept = {key: each for key, each in value.items() if f"{place}.{key}" in given} if isinstance(value, dict) else None
    if place not in given or kept is not None:
        section.pop(part, None)
    if kept:
        section[part] = kept
    return [place] if isinstance(value, dict) and len(value) > len(kept or ()) else []
