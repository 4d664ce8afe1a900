"""What surrounds a run: its topology, its folder, and the record it leaves."""

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
from decero.training.rendezvous import meeting
from decero.training.sharding import sharding_asked_for


@dataclass(frozen=True)
class Run:
    """An open run: its processes, its settings and its folder.

    sharded: whether the weights are sharded over the processes (FSDP2). progress: show bars and say what was chosen.
    tag: put before the names that trackers see, to tell several runs of one process apart.
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
        """Whether this is the main process, the one that writes files."""
        return self.accelerator.is_main_process

    def print(self, *lines: str) -> None:
        """Print lines once, on the main process."""
        self.accelerator.print("\n".join(lines))

    def with_settings(self, config: Any) -> "Run":
        """The same run under other settings of its sections."""
        return replace(self, config=config, training=config.training, optim=config.optim)


@contextmanager
def open_run(config: RunConfig) -> Iterator[Run]:
    """Start a run and close its trackers at the end. Raises UserError as `start` does."""
    run = start(config)
    yield run
    run.accelerator.end_training()


def start(config: RunConfig, training: TrainingSection | None = None) -> Run:
    """Check the processes that the launcher started, set up the device, and claim the output folder.

    training: for settings that have no such section.

    Raises UserError: one process where several were asked for, sharding that is not possible, a folder that holds
    another run.
    """
    training = training or getattr(config, "training", None) or TrainingSection(max_train_steps=1)
    sharded = sharding_asked_for()
    _check_launcher()
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"),
        log_with=_trackers(config) or None,
        project_config=ProjectConfiguration(project_dir=config.output, logging_dir=f"{config.output}/logs"),
        kwargs_handlers=[meeting(timedelta(seconds=training.ddp_timeout))],
    )
    accelerator.gradient_accumulation_steps = 1  # the loop counts; the launcher's number would divide the loss again
    _check_topology(config, accelerator, training, sharded)
    if config.hub.repo_id and get_token() is None:
        raise UserError("hub.repo_id: there is no token to push with; run `hf auth login` or set HF_TOKEN")
    _set_up_device(accelerator)
    accelerator.print(_topology_line(accelerator, training, sharded))
    if not config.dry_run:
        _on_main(accelerator, lambda: _claim(Path(config.output), config.resume))
        if config.call.budget is None:
            settle(config, accelerator)
    reset_peak_memory()
    optim = getattr(config, "optim", None) or OptimSection()
    return Run(accelerator, training, optim, Path(config.output), config.seed, config.resume, sharded, config=config)


def _check_launcher() -> None:
    """`accelerate launch --cpu --num_processes 2` prepares an address for two processes and starts one: refuse that."""
    asked_for_more = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if asked_for_more and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise UserError(
            "topology: the launcher was asked for several processes and started one; on CPU use "
            "accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml ..."
        )


def _check_topology(config: RunConfig, accelerator: Accelerator, training: TrainingSection, sharded: bool) -> None:
    """Refuse a topology that is not supported, or not the one that the settings ask for."""
    if str(accelerator.distributed_type).removeprefix("DistributedType.") not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise UserError(f"topology: {accelerator.distributed_type} is not supported; use configs/accelerate/ddp.yaml")
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
    processes = accelerator.num_processes
    if training.num_processes not in (None, processes) and not config.call.device:
        raise UserError(
            f"topology: training.num_processes asks for {training.num_processes}, the launcher gave {processes}"
        )


def _set_up_device(accelerator: Accelerator) -> None:
    """Threads and allocator of a CPU, TF32 of a GPU."""
    if accelerator.device.type != "cpu":
        multiply_in_tf32()
        return
    # accelerate's launcher sets one thread a process, whatever the machine has
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local))
    keep_freed_memory()


def _topology_line(accelerator: Accelerator, training: TrainingSection, sharded: bool) -> str:
    """`topology: 2 processes on cpu (multi_cpu, 1 threads each), fp32`."""
    processes, device = accelerator.num_processes, accelerator.device.type
    each = f", {torch.get_num_threads()} threads each" if device == "cpu" else ""
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.").lower().replace("no", "not distributed")
    precision = training.mixed_precision.replace("no", "fp32") + (", sharded (FSDP2)" if sharded else "")
    return f"topology: {processes} process{'es' if processes > 1 else ''} on {device} ({kind}{each}), {precision}"


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


def multiply_in_tf32() -> None:
    """fp32 products on an NVIDIA GPU keep 10 bits of each factor: several times as fast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
