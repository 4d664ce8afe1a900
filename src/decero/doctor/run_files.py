"""Read the files of a run, damaged or not: every damage is a finding, and what is intact is used."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decero.doctor.findings import Finding
from decero.doctor.model_files import model_damage
from decero.errors import UserError, regular_file
from decero.training.checkpoint import MANIFEST, checkpoint_of, damage, steps_in

MOST_BYTES = 2**30  # of a log or a record
LARGEST = 2**63  # of a number in a log
TEXTS = ("split",)  # fields of result.json that hold text
AGAIN = "start the run again with --resume, which continues from its last checkpoint"


def read_log(folder: Path) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Return the rows of metrics.jsonl and what is wrong with the file.

    A row has `step` and numbers. A last line that a kill cut short is no damage.
    """
    path, rows, bad = folder / "metrics.jsonl", [], []
    if not os.path.lexists(path):
        return [], []
    try:
        content = regular_file(path, MOST_BYTES).read_bytes()
    except (UserError, OSError) as error:
        return [], [_finding(path, _reason(path, error), f"move it away; {AGAIN}")]
    lines = content.split(b"\n")
    cut = len(lines) if lines[-1].startswith(b"{") else 0
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < LARGEST:
            rows.append({name: value for name, value in row.items() if _is_number(value)})
        elif line.strip() and number != cut:
            bad.append(number)
    if not bad:
        return rows, []
    what = f"{len(bad)} of {len(rows) + len(bad)} lines are no log lines, the first is line {bad[0]}"
    return rows, [Finding("files", "warn", what, str(path), "checks use the other lines; copy the file again")]


def read_result(folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Return result.json, its scores as numbers, and what is wrong with the file."""
    path = folder / "result.json"
    if not os.path.lexists(path):
        return {}, []
    mend = f"move it away; {AGAIN} and scores the model again"
    try:
        found = _parse(regular_file(path, MOST_BYTES).read_bytes())
    except (UserError, OSError) as error:
        return {}, [_finding(path, _reason(path, error), mend)]
    if not isinstance(found, dict):
        return {}, [_finding(path, "this is no record: not UTF-8, cut short, or no JSON object", mend)]
    scores = found.get("metric")
    wrong = [name for name in TEXTS if not isinstance(found.get(name, ""), str)]
    if not isinstance(scores, dict) or not all(map(_is_number, scores.values())):
        wrong.append("metric")
        scores = {}
    found = {name: value for name, value in found.items() if name not in wrong} | {"metric": scores}
    return found, [_finding(path, f"{', '.join(wrong)} has values of another type", mend)] if wrong else []


def damaged_files(folder: Path) -> Iterator[Finding]:
    """Find damage in a run's log, record, checkpoints and model. Opens regular files only and runs no code."""
    yield from read_log(folder)[1]
    yield from read_result(folder)[1]
    yield from _checkpoints(folder / "checkpoints")
    model = folder / "model"
    if os.path.lexists(model):
        mend = "move model/ and result.json away; " + AGAIN
        for each in model_damage(model):
            yield Finding(each.check, "bad", each.what, str(each.path), mend)


def _checkpoints(folder: Path) -> Iterator[Finding]:
    """Find checkpoints that `--resume` would skip."""
    if not os.path.lexists(folder):
        return
    try:
        steps = steps_in(folder) if os.path.isdir(folder) else None
    except OSError as error:
        yield _finding(folder, str(error.strerror), "make it readable")
        return
    if steps is None:
        yield _finding(folder, "this is no folder", "move it away, then start the run again")
        return
    damages = {checkpoint_of(folder, step): _damage(checkpoint_of(folder, step)) for step in steps}
    intact = [path for path, why in damages.items() if not why]
    for path, why in damages.items():
        mend = f"delete it; --resume continues from {intact[-1].name}" if intact else "delete it; --resume starts anew"
        if why:
            yield Finding("files", "warn" if intact else "bad", why, str(path), mend)


def _damage(path: Path) -> str | None:
    if not os.path.isdir(path):
        return "this is no folder"
    try:
        regular_file(path / MANIFEST, MOST_BYTES)
        return damage(path)
    except RecursionError:
        return f"{MANIFEST} is nested too deeply"
    except (UserError, OSError) as error:
        return _reason(path, error)


def _parse(line: bytes) -> Any:
    """Parse JSON; None if it is none. ValueError: also no UTF-8, and an integer of 5,000 digits."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _finding(path: Path, what: str, mend: str) -> Finding:
    return Finding("files", "bad", what, str(path), mend)


def _reason(path: Path, error: UserError | OSError) -> str:
    return (
        (str(error) if isinstance(error, UserError) else error.strerror or str(error))
        .replace(f"{path}/", "")
        .removeprefix(f"{path}: ")
    )
