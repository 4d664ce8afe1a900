"""Write result.json: the results of a run, and what is needed to interpret and repeat it."""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from datasets import Dataset

from decero.config.run_config import RunConfig
from decero.data.stream import Stream
from decero.errors import UserError, root_line
from decero.execution.adapters import costs
from decero.files import write_whole
from decero.training.memory import peak_memory
from decero.training.runs import PUSHED, on_main

SCORE_AGAIN = "delete this file, and --resume scores the model again"
SAMPLE = 64  # rows that tell a changed corpus or tokenizer
RECORDED = ("decero", "torch", "transformers", "datasets", "accelerate", "tokenizers")


@dataclass
class TrainResult:
    """The model and the totals of a run.

    tokens: without padding. save_time_s: the part of the wall time spent on checkpoints. best: metrics of the best
    evaluation, with `metric_for_best_model`.
    """

    model: Any
    step: int = 0
    tokens: int = 0
    wall_time_s: float = 0.0
    save_time_s: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the cost of the run."""
        return {
            "steps": self.step,
            "tokens": self.tokens,
            **costs(self.model, self.tokens),
            "wall_time_s": self.wall_time_s,
            "save_time_s": self.save_time_s,
            "best": self.best,
        }


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
    write_whole(path, json.dumps(finite(record), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Return a value with None for NaN and infinity, also in lists and dictionaries."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
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


def sample_of(dataset: Dataset | Stream) -> dict[str, Any]:
    """Return the number of training rows and a hash of 64 of them; {} for a stream.

    A run cannot go on with other rows: the order of the rows, the number of steps and the learning rate would change.
    """
    if not isinstance(dataset, Dataset):
        return {}
    places = np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int)
    names = [name for name in ("input_ids", "labels") if name in dataset.column_names]
    rows = dataset.select(places).select_columns(names).with_format(None).to_list() if names else []
    return {"number": len(dataset), "sample": hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()}


def check_rows(before: dict[str, Any] | None, now: dict[str, Any], output: Path) -> None:
    """Raise UserError if a checkpoint was trained on other rows. before: its `sample_of`; None in old checkpoints."""
    if not before or before == now:
        return
    what = "the training data or the tokenizer has changed"
    if before["number"] != now.get("number"):
        what = f"the training data has changed ({before['number']:,} rows, now {now.get('number', 0):,})"
    raise UserError(f"{output}: {what} since the run began; restore it, or give another output=FOLDER")
