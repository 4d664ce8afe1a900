"""Open a run: check the topology, claim the output folder, record the settings."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from filelock import FileLock, Timeout
from huggingface_hub import get_token

from decero.config.run_config import RunConfig
from decero.config.sections import OptimSection, TrainingSection
from decero.errors import CLEANUPS, UserError, did_you_mean
from decero.training.memory import keep_freed_memory, reset_peak_memory
from decero.training.rendezvous import process_group_options
from decero.training.sharding import sharding_requested


@dataclass(frozen=True)
class Run:
    """An open run: its processes, its settings and its folder.

    sharded: whether the weights are sharded over the processes (FSDP2). progress: whether to show progress bars.
    tag: prefix of the names in trackers, to tell several runs of one process apart.
    """

    accelerator: Accelerator
    training: TrainingSection
    optim: OptimSection
    output: Path
    seed: int = 0
    resume: bool = False
    sharded: bool = False
    progress: bool = True
    tag: str = ""
    config: Any = None

    @property
    def is_main(self) -> bool:
        """Return whether this is the main process, which writes the files."""
        return self.accelerator.is_main_process

    def print(self, *lines: str) -> None:
        """Print lines once, on the main process."""
        self.accelerator.print("\n".join(lines))

    def with_settings(self, config: Any) -> "Run":
        """Return the same run with the settings of `config`."""
        return replace(self, config=config, training=config.training, optim=config.optim)


@contextmanager
def open_run(config: RunConfig) -> Iterator[Run]:
    """Start a run, and close its trackers at the end. Raises UserError as `start` does."""
    run = start(config)
    yield run
    run.accelerator.end_training()


def start(config: RunConfig, training: TrainingSection | None = None) -> Run:
    """Check the processes that the launcher started, set up the device, and claim the output folder.

    training: used when `config` has no such section.

    Raises UserError when the launcher started fewer processes than requested, when sharding is not possible, and when
    the folder holds another run.
    """
    training = training or getattr(config, "training", None) or TrainingSection(max_train_steps=1)
    sharded = sharding_requested()
    _check_launcher()
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"),
        log_with=_trackers(config) or None,
        project_config=ProjectConfiguration(project_dir=config.output, logging_dir=f"{config.output}/logs"),
        kwargs_handlers=[process_group_options(timedelta(seconds=training.ddp_timeout))],
    )
    accelerator.gradient_accumulation_steps = 1  # else accelerate would divide the loss again
    _check_topology(config, accelerator, training, sharded)
    if config.hub.repo_id and get_token() is None:
        raise UserError("hub.repo_id: no token to push with; run `hf auth login` or set HF_TOKEN")
    _set_up_device(accelerator)
    accelerator.print(_topology_line(accelerator, training, sharded))
    if not config.dry_run:
        _on_main(accelerator, lambda: _claim(Path(config.output), config.resume))
        if config.call.budget is None:
            write_settings(config, accelerator)
    reset_peak_memory()
    optim = getattr(config, "optim", None) or OptimSection()
    return Run(accelerator, training, optim, Path(config.output), config.seed, config.resume, sharded, config=config)


def _check_launcher() -> None:
    """Refuse a bug of `accelerate launch --cpu --num_processes 2`: it starts one process instead of two."""
    several_requested = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if several_requested and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise UserError(
            "topology: the launcher was asked for several processes but started one; on CPU use "
            "accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml ..."
        )


def _check_topology(config: RunConfig, accelerator: Accelerator, training: TrainingSection, sharded: bool) -> None:
    """Refuse unsupported topologies, and those that contradict the settings."""
    if str(accelerator.distributed_type).removeprefix("DistributedType.") not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise UserError(f"topology: {accelerator.distributed_type} is not supported; use configs/accelerate/ddp.yaml")
    if sharded and not torch.distributed.is_initialized():
        raise UserError(
            "topology: FSDP2 needs connected processes, but the launcher started separate ones; on CPUs set "
            "ACCELERATE_USE_CPU=true, for one GPU use configs/accelerate/single_gpu.yaml"
        )
    if sharded and training.compile:
        raise UserError("training.compile: not tested with sharded weights (FSDP2); set it to false")
    if sharded and training.per_device_batch_size == "auto":
        raise UserError(
            "training.per_device_batch_size: auto finds the size by running out of memory, which sharded processes "
            "cannot recover from; set a number"
        )
    processes = accelerator.num_processes
    if training.num_processes not in (None, processes) and not config.call.device:
        raise UserError(
            f"topology: training.num_processes is {training.num_processes}, but the launcher started {processes}; "
            f"use accelerate launch --num_processes {training.num_processes}"
        )


def _set_up_device(accelerator: Accelerator) -> None:
    """Set threads and allocator on a CPU, TF32 on a GPU."""
    if accelerator.device.type != "cpu":
        multiply_in_tf32()
        return
    # accelerate's launcher sets one thread per process, however many cores there are
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local))
    keep_freed_memory()


def _topology_line(accelerator: Accelerator, training: TrainingSection, sharded: bool) -> str:
    """Return a line such as `topology: 2 processes on cpu (multi_cpu, 1 threads each), fp32`."""
    processes, device = accelerator.num_processes, accelerator.device.type
    each = f", {torch.get_num_threads()} threads each" if device == "cpu" else ""
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.").lower().replace("no", "not distributed")
    precision = training.mixed_precision.replace("no", "fp32") + (", sharded (FSDP2)" if sharded else "")
    return f"topology: {processes} process{'es' if processes > 1 else ''} on {device} ({kind}{each}), {precision}"


def write_settings(config: RunConfig, accelerator: Accelerator) -> None:
    """Write config.yaml into the claimed folder: at the start, or after --budget has chosen the settings."""
    _on_main(accelerator, lambda: _write_config(Path(config.output), config))
    if accelerator.log_with:
        accelerator.init_trackers(config.tracking.project_name)


def _trackers(config: RunConfig) -> list[str]:
    if config.tracking.trackers != "auto":
        for name in config.tracking.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                near = did_you_mean(name, LOGGER_TYPE_TO_CLASS) or f"; use one of {', '.join(LOGGER_TYPE_TO_CLASS)}"
                raise UserError(f"tracking.trackers: unknown tracker {name}{near}")
        return list(config.tracking.trackers)
    return ["tensorboard"] if find_spec("tensorboard") and not config.dry_run else []


_LOCKS: list[FileLock] = []  # held until the process ends


def _on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Run `action` on the main process. Every process raises its UserError, so that none waits forever."""
    refusal: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except UserError as error:
            refusal = [str(error)]
    broadcast_object_list(refusal)
    if refusal[0]:
        raise UserError(refusal[0])


OTHER = "give another output=FOLDER"


def _claim(output: Path, resume: bool) -> None:
    """Claim the folder for this run. Never overwrites a finished or unfinished run.

    Raises UserError when another run holds the folder, and when it cannot be written.
    """
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
    files = _run_files(output)
    if files and not (output / "config.yaml").is_file():
        raise UserError(f"output: {output} is not empty and holds no run; {OTHER}")
    if files and not resume:
        raise UserError(f"output: {output} holds another run; --resume it, delete it, or {OTHER}")
    if fresh:
        CLEANUPS.append(lambda: _unclaim(output, lock))


def _write_config(output: Path, config: RunConfig) -> None:
    """Write config.yaml. A run that is resumed must keep its settings; comments may differ.

    Raises UserError when a setting differs.
    """
    record, settings = output / "config.yaml", config.to_yaml()
    if not _run_files(output):  # nothing to protect: the earlier run stopped before its first step
        temporary = output / ".config.yaml.tmp"
        temporary.write_text(settings, encoding="utf-8")
        temporary.replace(record)
        return
    try:
        recorded = type(config).load(str(record)).to_yaml()  # settings added since get their defaults
    except UserError:
        recorded = record.read_text(encoding="utf-8")
    old, new = ([line for line in text.splitlines() if not line.startswith("#")] for text in (recorded, settings))
    if old != new:
        changed = next(b or a for a, b in itertools.zip_longest(old, new, fillvalue="") if a != b).strip()
        raise UserError(
            f"output: {output} holds a run with other settings (here: {changed}); use the same ones, or {OTHER}"
        )


def _run_files(output: Path) -> set[str]:
    """List the files of a run in its folder, without lock, logs and settings."""
    return {path.name for path in output.iterdir() if path.name[0] != "."} - {"logs", "config.yaml"}


def _unclaim(output: Path, lock: FileLock) -> None:
    """Remove the folder of a run that was refused before it wrote anything."""
    if output.is_dir() and not _run_files(output):
        lock.release()
        shutil.rmtree(output, ignore_errors=True)


@contextmanager
def main_first(accelerator: Accelerator):
    """Run the block on the main process first, so that the others find its cache.

    Unlike accelerate's version, it releases the others when the main process fails.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


def multiply_in_tf32() -> None:
    """Use TF32 for fp32 products on NVIDIA GPUs: 10 mantissa bits per factor, several times as fast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
