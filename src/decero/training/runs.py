"""What surrounds a run: its topology, its folder, and the record it leaves."""

import ctypes
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from filelock import FileLock, Timeout
from huggingface_hub import get_token

from decero.config.run_config import RunConfig
from decero.config.sections import TrainingSection
from decero.errors import CLEANUPS, UserError, did_you_mean
from decero.training.rendezvous import meeting
from decero.training.sharding import sharding_asked_for

RECORDED = ("decero", "torch", "transformers", "datasets", "accelerate", "tokenizers")


def start(config: RunConfig, training: TrainingSection | None = None) -> Accelerator:
    """Say which topology the launcher gave, refuse another than was asked for, and claim the output folder.

    `accelerator.sharded` says whether weights are to be sharded over the processes (FSDP2).

    Raises UserError: one process where several were asked for, shards that there cannot be, a folder that holds another
    run.
    """
    training = training or TrainingSection(max_train_steps=1)
    sharded = sharding_asked_for()
    # `accelerate launch --cpu --num_processes 2` prepares an address for two processes, then starts one.
    asked_for_more = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if asked_for_more and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise UserError(
            "topology: the launcher was asked for several processes and started one; on CPU use "
            "accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml ..."
        )
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"),
        log_with=_trackers(config) or None,
        project_config=ProjectConfiguration(project_dir=config.output, logging_dir=f"{config.output}/logs"),
        kwargs_handlers=[meeting(timedelta(seconds=training.ddp_timeout))],
    )
    accelerator.gradient_accumulation_steps = 1  # ours to count; the launcher's would divide the loss once more
    if str(accelerator.distributed_type).removeprefix("DistributedType.") not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise UserError(f"topology: {accelerator.distributed_type} is not supported; use configs/accelerate/ddp.yaml")
    accelerator.sharded = sharded  # type: ignore[attr-defined]
    if sharded and not torch.distributed.is_initialized():
        raise UserError(
            "topology: FSDP2 was asked for, and the launcher started processes that do not know of each other; on CPUs "
            "set ACCELERATE_USE_CPU=true, for one GPU use configs/accelerate/single_gpu.yaml"
        )
    if sharded and training.compile:
        raise UserError("training.compile: compiled layers are not proven with sharded weights (FSDP2); leave it out")
    if sharded and training.per_device_batch_size == "auto":
        raise UserError(
            "training.per_device_batch_size: auto finds its size by running out of memory, after which sharded "
            "processes cannot go on; give a number"
        )
    if config.hub.repo_id and get_token() is None:
        raise UserError("hub.repo_id: there is no token to push with; run `hf auth login` or set HF_TOKEN")
    processes, device = accelerator.num_processes, accelerator.device.type
    if training.num_processes not in (None, processes) and not config.call.device:
        raise UserError(
            f"topology: training.num_processes asks for {training.num_processes}, the launcher gave {processes}"
        )
    if device == "cpu":  # accelerate's launcher sets one thread a process, whatever the machine has
        local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local))
        keep_freed_memory()
    else:
        multiply_in_tf32()
    each = f", {torch.get_num_threads()} threads each" if device == "cpu" else ""
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.").lower().replace("no", "not distributed")
    precision = training.mixed_precision.replace("no", "fp32") + (", sharded (FSDP2)" if sharded else "")
    accelerator.print(
        f"topology: {processes} process{'es' if processes > 1 else ''} on {device} ({kind}{each}), {precision}"
    )
    if not config.dry_run:
        _on_main(accelerator, lambda: _claim(Path(config.output), config.resume))
        if config.call.budget is None:
            settle(config, accelerator)
    reset_peak_memory()
    return accelerator


def settle(config: RunConfig, accelerator: Accelerator) -> None:
    """Write the settings into the folder that was claimed: at the start, or once --budget has decided them."""
    _on_main(accelerator, lambda: _write_down(Path(config.output), config))
    if accelerator.log_with:
        accelerator.init_trackers(config.tracking.project_name)


def _trackers(config: RunConfig) -> list[str]:
    if config.tracking.trackers != "auto":
        for name in config.tracking.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                near = did_you_mean(name, LOGGER_TYPE_TO_CLASS) or f"; there are {', '.join(LOGGER_TYPE_TO_CLASS)}"
                raise UserError(f"tracking.trackers: {name} is no tracker of accelerate{near}")
        return list(config.tracking.trackers)
    return ["tensorboard"] if find_spec("tensorboard") and not config.dry_run else []


_LOCKS: list[FileLock] = []  # held until the process ends


def _on_main(accelerator: Accelerator, do: Callable[[], None]) -> None:
    """Let the main process do it. Every process raises its UserError, so that none is left waiting."""
    refusal: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            do()
        except UserError as error:
            refusal = [str(error)]
    broadcast_object_list(refusal)
    if refusal[0]:
        raise UserError(refusal[0])


OTHER = "give another output=FOLDER"


def _claim(output: Path, resume: bool) -> None:
    """Make the folder this run's own. One that holds a finished or unfinished run is never written over."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        fresh = not any(output.iterdir())
        lock = FileLock(output / ".lock")
        lock.acquire(timeout=0)
        _LOCKS.append(lock)
    except Timeout:
        raise UserError(f"output: {output} is being written by another run; wait for it, or {OTHER}") from None
    except OSError as error:
        raise UserError(f"output: {output} cannot be written: {error.strerror}; {OTHER}") from None
    begun = _begun(output)
    if begun and not (output / "config.yaml").is_file():
        raise UserError(f"output: {output} is not empty and holds no run; {OTHER}")
    if begun and not resume:
        raise UserError(f"output: {output} holds another run; --resume it, delete it, or {OTHER}")
    if fresh:
        CLEANUPS.append(lambda: _unclaim(output, lock))


def _write_down(output: Path, config: RunConfig) -> None:
    """config.yaml. The settings of a run that began must be those that it began with; its notes may be others."""
    record, settings = output / "config.yaml", config.to_yaml()
    if not _begun(output):  # a run that stopped before its first step left nothing to lose
        beside = output / ".config.yaml.tmp"
        beside.write_text(settings, encoding="utf-8")
        beside.replace(record)
        return
    try:
        begun_with = type(config).load(str(record)).to_yaml()  # settings newer than the run have their defaults
    except UserError:
        begun_with = record.read_text(encoding="utf-8")
    theirs, mine = ([line for line in text.splitlines() if not line.startswith("#")] for text in (begun_with, settings))
    if theirs != mine:
        changed = next(b or a for a, b in itertools.zip_longest(theirs, mine, fillvalue="") if a != b).strip()
        raise UserError(
            f"output: {output} holds a run with other settings (here: {changed}); use the same ones, or {OTHER}"
        )


def _begun(output: Path) -> set[str]:
    """What a run left in its folder besides its claim."""
    return {path.name for path in output.iterdir() if path.name[0] != "."} - {"logs", "config.yaml"}


def _unclaim(output: Path, lock: FileLock) -> None:
    """Take back the folder that was made for a run which was refused before it left anything there."""
    if output.is_dir() and not _begun(output):
        lock.release()
        shutil.rmtree(output, ignore_errors=True)


@contextmanager
def main_first(accelerator: Accelerator):
    """The main process goes first and the others find its cache. Unlike accelerate's, it lets them go when it fails."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


def finished(config: RunConfig) -> dict[str, Any] | None:
    """The record of a run that is over, when this is a resume of it."""
    record = Path(config.output) / "result.json"
    if not config.resume or not record.is_file():
        return None
    return json.loads(record.read_text(encoding="utf-8"))


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


def multiply_in_tf32() -> None:
    """fp32 products on an NVIDIA GPU keep 10 bits of each factor: several times as fast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def keep_freed_memory() -> None:
    """Have the C library keep what is freed: the next step asks for the same again. Elsewhere than on glibc, nothing.

    By default glibc takes each tensor above 32 MiB from the system, which fills it with zeros page by page, and gives
    it back at once (mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD). PyTorch's guide to CPUs has jemalloc for the same end.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def give_back_memory() -> None:
    """What `keep_freed_memory` kept goes back to the system, so that what is held or free can be counted."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> None:
    """Start counting anew, so that several runs in one process each get their own peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    give_back_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: peak resident set := resident set


def peak_memory(accelerator: Accelerator) -> int:
    """Bytes at the highest point: of the accelerator where there is one, else of the process."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource  # not on every platform

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
