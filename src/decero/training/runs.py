"""Open a run: check the topology, claim the output folder, record the settings."""

import json
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
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from filelock import FileLock, Timeout
from huggingface_hub import get_token

from decero.config.recorded_settings import record_settings
from decero.config.run_config import RunConfig
from decero.config.sections import OptimSection, TrainingSection
from decero.errors import CLEANUPS, UserError, WriteError, did_you_mean, write_error
from decero.execution.adapters import save_whole
from decero.execution.denormals import denormals_as_zero
from decero.execution.precision import settle_precision
from decero.execution.saving import whole_folder
from decero.execution.threads import set_threads
from decero.training.memory import keep_freed_memory, reset_peak_memory
from decero.training.rendezvous import check_launcher, check_topology, process_group_options, topology_line
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

    @property
    def eval_only(self) -> bool:
        """Return whether the model is scored as it is, and nothing is trained."""
        return self.config is not None and self.config.eval_only

    def print(self, *lines: str) -> None:
        """Print lines once, on the main process."""
        self.accelerator.print("\n".join(lines))

    def save_model(self, *parts: Any, name: str = "model") -> Path:
        """Write a folder, model/ by default, completely or not at all, and return it.

        All processes must call it, and all raise its error.
        """
        folder = self.output / name

        def write() -> None:
            (self.output / PUSHED).unlink(missing_ok=True)  # it speaks of the earlier model
            for left in self.output.glob(f".{name}.*-*"):  # of a killed process
                shutil.rmtree(left, ignore_errors=True)
            with whole_folder(folder) as partial:
                for part in parts:
                    save_whole(part, partial)

        on_main(self.accelerator, write)
        return folder

    def with_settings(self, config: Any) -> "Run":
        """Return the same run with the settings of `config`."""
        if config.training.mixed_precision == "auto":
            config.training.mixed_precision = self.training.mixed_precision
        return replace(self, config=config, training=config.training, optim=config.optim)


@contextmanager
def open_run(config: RunConfig) -> Iterator[Run]:
    """Start a run, and close its trackers at the end. Raises UserError as `start` does."""
    with denormals_as_zero():
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
    settle_precision(training, config.call.device, Path(config.output, "config.yaml") if config.resume else None)
    sharded = sharding_requested()
    check_launcher()
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"),
        log_with=_trackers(config) or None,
        project_config=ProjectConfiguration(project_dir=config.output, logging_dir=f"{config.output}/logs"),
        kwargs_handlers=[process_group_options(timedelta(seconds=training.ddp_timeout))],
    )
    accelerator.gradient_accumulation_steps = 1  # else accelerate would divide the loss again
    check_topology(config, accelerator, training, sharded)
    if config.hub.repo_id and get_token() is None and pushed_to(Path(config.output)) != config.hub.repo_id:
        raise UserError("hub.repo_id: no token to push with; run `hf auth login` or set HF_TOKEN")
    _set_up_device(accelerator)
    accelerator.print(topology_line(accelerator, training, sharded))
    if not config.dry_run:
        on_main(accelerator, lambda: _claim(Path(config.output), config.resume))
        if config.call.budget is None:
            write_settings(config, accelerator)
    reset_peak_memory()
    optim = getattr(config, "optim", None) or OptimSection()
    return Run(accelerator, training, optim, Path(config.output), config.seed, config.resume, sharded, config=config)


def _set_up_device(accelerator: Accelerator) -> None:
    """Set threads and allocator on a CPU, TF32 on a GPU."""
    if accelerator.device.type != "cpu":
        multiply_in_tf32()
        return
    set_threads(int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    keep_freed_memory()


def write_settings(config: RunConfig, accelerator: Accelerator) -> None:
    """Write config.yaml into the claimed folder: at the start, or after --budget has chosen the settings."""
    output = Path(config.output)  # before its first step a run has nothing to protect
    on_main(accelerator, lambda: record_settings(output / "config.yaml", config, keep=bool(_run_files(output))))
    if accelerator.log_with:
        accelerator.init_trackers(config.tracking.project_name)


def _trackers(config: RunConfig) -> list[str]:
    if config.tracking.trackers != "auto":
        for name in config.tracking.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                near = did_you_mean(name, LOGGER_TYPE_TO_CLASS) or f"; use one of {', '.join(LOGGER_TYPE_TO_CLASS)}"
                raise UserError(f"tracking.trackers: unknown tracker {name}{near}")
            if name not in map(str, get_available_trackers()):
                raise UserError(f"tracking.trackers: {name} is not installed; pip install {name}, or remove it")
        return list(config.tracking.trackers)
    return ["tensorboard"] if find_spec("tensorboard") and not config.dry_run else []


@dataclass
class _Claim:
    """The lock of an output folder, and which file it was when it was taken."""

    folder: Path
    lock: FileLock
    file: os.stat_result

    def holds(self) -> bool:
        """Return whether the folder still has this lock. One that was deleted and made anew is another run's."""
        try:
            return os.path.samestat(self.file, os.stat(self.folder / ".lock"))
        except OSError:
            return False

    def release(self) -> None:
        self.lock.release()


_LOCKS: list[_Claim] = []  # held until the process ends


def check_claims() -> None:
    """Raise WriteError unless the output folder of this process is still its own."""
    for claim in _LOCKS:
        if not claim.holds():
            raise WriteError(
                f"output: {claim.folder} was deleted or replaced while this run used it; the run stops and writes "
                f"nothing more; start it again, or {OTHER}"
            )


def on_main(accelerator: Accelerator, action: Callable[[], Any]) -> None:
    """Write something on the main process, into a folder that is still this run's. All processes must call it.

    Every process raises the UserError of the main process, so that none waits forever. Errors of the disk become one.
    """
    refusal: list[UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            check_claims()
            action()
        except Exception as error:
            refusal = [error if isinstance(error, UserError) else write_error(error)]
            if refusal[0] is None:
                raise
    broadcast_object_list(refusal)
    if refusal[0]:
        raise refusal[0]


OTHER = "give another output=FOLDER"
PUSHED = "pushed.json"  # where the model was pushed to


def pushed_to(output: Path) -> str | None:
    """Return the hub repository that the model of a run was pushed to, if any."""
    try:
        return json.loads((output / PUSHED).read_text(encoding="utf-8"))["repo_id"]
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: a second push changes nothing
        return None


def _claim(output: Path, resume: bool) -> None:
    """Claim the folder for this run. Never overwrites a finished or unfinished run.

    Raises UserError when another run holds the folder, and when it cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        fresh = not any(output.iterdir())
        lock = FileLock(output / ".lock")
        lock.acquire(timeout=0)
        claim = _Claim(output.absolute(), lock, os.stat(output / ".lock"))
        _LOCKS.append(claim)
    except Timeout:
        raise UserError(f"output: {output} is being written by another run; wait for it, or {OTHER}") from None
    except OSError as error:
        raise UserError(f"output: {output} cannot be written: {error.strerror}; {OTHER}") from None
    files = _run_files(output)
    if files and not (output / "config.yaml").is_file():
        _LOCKS.remove(claim)
        claim.release()
        if not {"checkpoints", "metrics.jsonl", "result.json"} & files:
            (output / ".lock").unlink(missing_ok=True)
            raise UserError(f"output: {output} is not empty and holds no run; {OTHER}")
        raise UserError(f"output: {output} holds a run, but its config.yaml is missing; write it again, or {OTHER}")
    if files and not resume:
        raise UserError(f"output: {output} holds another run; --resume it, delete it, or {OTHER}")
    if fresh:
        CLEANUPS.append(lambda: _unclaim(output, claim))


def _run_files(output: Path) -> set[str]:
    """List the files of a run in its folder, without lock, logs and settings."""
    return {path.name for path in output.iterdir() if path.name[0] != "."} - {"logs", "config.yaml"}


def _unclaim(output: Path, claim: _Claim) -> None:
    """Remove the folder of a run that was refused before it wrote anything."""
    if claim.holds() and not _run_files(output):
        claim.release()
        _LOCKS.remove(claim)
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
