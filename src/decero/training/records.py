"""result.json: what a run found, and what is needed to read and repeat it."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from decero.config.run_config import RunConfig
from decero.training.memory import peak_memory

RECORDED = ("decero", "torch", "transformers", "datasets", "accelerate", "tokenizers")


def finished(config: RunConfig) -> dict[str, Any] | None:
    """The record of a run that is over, when this is a resume of it."""
    record = Path(config.output) / "result.json"
    if not config.resume or not record.is_file():
        return None
    return json.loads(record.read_text(encoding="utf-8"))


def read_record(folder: Path) -> dict[str, Any]:
    """The result.json of a run."""
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def write_result(output: Path, accelerator: Accelerator, result: dict[str, Any]) -> dict[str, Any]:
    """result.json: the run's own figures, then what is needed to read and repeat them. Returns the whole record."""
    record = result | {
        "peak_memory_bytes": peak_memory(accelerator),
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "machine": f"{platform.machine()}, {psutil.cpu_count(logical=False) or os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED},
        "commit": _commit(),
    }
    if accelerator.is_main_process:
        write_json(output / "result.json", record)
    accelerator.wait_for_everyone()
    return record


def write_json(path: Path, record: dict[str, Any]) -> None:
    """The whole file or none, its folder made when it is not there."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _commit() -> str | None:
    """The commit of the working folder, marked when it holds changes; None outside a repository."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
