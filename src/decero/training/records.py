"""Write result.json: the results of a run, and what is needed to interpret and repeat it."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from decero.config.run_config import RunConfig
from decero.errors import UserError, root_line
from decero.files import write_whole
from decero.training.memory import peak_memory
from decero.training.runs import PUSHED, on_main

SCORE_AGAIN = "delete this file, and --resume scores the model again"
RECORDED = ("decero", "torch", "transformers", "datasets", "accelerate", "tokenizers")


def finished(config: RunConfig) -> dict[str, Any] | None:
    """Return the record of the run if it has already finished and is resumed; else None."""
    folder = Path(config.output)
    if not config.resume or not (folder / "result.json").is_file():
        return None
    record = read_record(folder)
    best = record.get("best", {})
    whole = isinstance(record.get("metric"), dict) and isinstance(best, dict)
    if "finished" not in record or not whole or (best and not isinstance(best.get("step"), int)):
        raise UserError(f"{folder}/result.json: damaged: parts of it are missing; {SCORE_AGAIN}")
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """Return the result.json of a run. Raises UserError when it is damaged."""
    path = folder / "result.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {root_line(error)}; {SCORE_AGAIN}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: damaged: it holds no record; {SCORE_AGAIN}")
    return record


def write_result(output: Path, accelerator: Accelerator, result: dict[str, Any]) -> dict[str, Any]:
    """Write result.json: the results of the run, then memory, machine, versions and command, unless they are there.

    Returns the whole record.
    """
    facts = {
        "peak_memory_bytes": peak_memory(accelerator),
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "machine": f"{platform.machine()}, {psutil.cpu_count(logical=False) or os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in RECORDED},
        "commit": commit_of(),
    }
    record = result | {name: fact for name, fact in facts.items() if name not in result}
    on_main(accelerator, lambda: write_json(output / "result.json", record))
    return record


def write_pushed(output: Path, repo_id: str) -> None:
    """Note that the model of a run was pushed."""
    write_json(output / PUSHED, {"repo_id": repo_id})


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file completely or not at all. Creates its folder if needed.

    NaN and infinities, which JSON does not have, become null.
    """
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def version_of(package: str) -> str:
    """Return the version of a package; of decero also where it is not installed, but run from its folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return import_module(package).__version__


def commit_of() -> str | None:
    """Return the commit of the working folder, marked `-dirty` if it has changes; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
