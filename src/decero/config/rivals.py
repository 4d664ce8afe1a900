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
PARTS = {"name": ("config_name", "revision"), "name_or_path": ("revision", "trust_remote_code")}  # mean nothing alone
ENTRIES = ("contenders", "tasks", "files", "parallel", "tune")  # mappings with names that the user chooses


def rivals_of(name: str) -> set[str]:
    """Return the settings of the same section that this one excludes."""
    return {rival for group in RIVALS if name in group for rival in group} - {name}


def displace(settings: dict[str, Any], changed: Iterable[str]) -> list[str]:
    """Remove from `settings` the rivals of the changed keys, unless they were changed, too. Return a line for each.

    `data.files.train=x` on the command line removes `data.name` of the file. A null entry of a mapping, such as
    `contenders.ours=null`, removes the entry.
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
                    for part in (rival, *PARTS.get(rival, ())):
                        section.pop(part, None)
                    lines.append(f"{'.'.join(path[: depth + 1])} on the command line replaces {place}")
            section = section[name]
    return lines
