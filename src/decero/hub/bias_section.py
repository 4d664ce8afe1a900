"""The bias section of a model card: what the probes of recipes/probe_bias.py measured, and what that does not show."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from decero.errors import UserError
from decero.files import sha256_of
from decero.hub.foreign_files import check_sendable, read_json
from decero.hub.private import without_paths

FILE = "run/bias.json"  # in a pushed model
MOST = 200  # categories, and limits
TEXTS = ("set", "category")
HINT = "run recipes/probe_bias.py again, or remove this file"


def read_bias(folder: Path, files: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return the record of bias probes of a model folder, without local paths; None where there is none.

    It is bias/result.json in the folder, or beside a folder named model; or run/bias.json, as `push` writes it.
    files: those of the model. Raises UserError for a damaged record, and one that measured other weights.
    """
    folder = folder.resolve()
    home = folder.parent if folder.name == "model" else folder
    for path in (folder / FILE, folder / "bias" / "result.json", home / "bias" / "result.json"):
        if path.is_symlink() or path.exists():
            if path.parent.is_symlink():
                raise UserError(f"{path.parent}: this is a link, which is not followed; replace it with a copy")
            record = read_json(check_sendable(path, folder))
            _check(record, path)
            _check_weights(record["weights"], files, path)
            return without_paths(record)
    return None


def bias_lines(record: Mapping[str, Any], plain: Callable[[Any], str], words: Mapping[str, str]) -> str:
    """Return the section as Markdown. plain: writes a text as itself, without markup. words: those of the card."""
    lines = [words["bias_table"], "|:--|:--|--:|--:|:--|--:|:--|"]
    for each in record["categories"]:
        cells = [plain(each["set"]), plain(each["category"]), f"{each['probes']:,}"]
        for part in ("plain", "corrected"):
            cells += [_points(each[part]["share"]), plain(each[part]["verdict"])]
        lines.append(f"| {' | '.join(cells)} |")
    limits = (f"- {plain(limit)}" for limit in record["limits"])
    return "\n".join([words["bias_about"], "", *lines, "", words["bias_limits"], "", *limits])


def _points(share: list) -> str:
    return "–" if share[0] is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in share))


def _check(record: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the record has all that the section shows."""
    categories, limits, weights = (record.get(name) for name in ("categories", "limits", "weights"))
    whole = (
        isinstance(categories, list) and 0 < len(categories) <= MOST and all(map(_is_category, categories))
        and isinstance(limits, list) and 0 < len(limits) <= MOST and all(isinstance(each, str) for each in limits)
        and isinstance(weights, dict) and all(isinstance(each, str) for each in weights.values())
    )  # fmt: skip
    if not whole:
        raise UserError(f"{path}: damaged: parts of the record of bias probes are missing; {HINT}")


def _is_category(each: Any) -> bool:
    if not isinstance(each, dict) or not all(isinstance(each.get(name), str) for name in TEXTS):
        return False
    parts = [each.get(name) for name in ("plain", "corrected")]
    return (
        _is_number(each.get("probes"))
        and all(isinstance(part, dict) and isinstance(part.get("verdict"), str) for part in parts)
        and all(_is_share(part.get("share")) for part in parts)  # type: ignore[union-attr]
    )


def _is_share(share: Any) -> bool:
    if not isinstance(share, list) or len(share) != 3:
        return False
    return share == [None] * 3 or all(map(_is_number, share))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e12


def _check_weights(known: Mapping[str, str], files: Mapping[str, Path], path: Path) -> None:
    pushed = {name: sha256_of(file).hexdigest() for name, file in files.items() if name.endswith(".safetensors")}
    for name, digest in pushed.items():
        if digest not in known.values():
            raise UserError(f"{path}: the probes measured other weights than {name}; {HINT}")
    for name, digest in known.items():
        if "adapter" in name and digest not in pushed.values():
            raise UserError(f"{path}: the probes measured an adapter ({name}), which is not here; {HINT}")
