"""Connect the processes of a run, with separate addresses for each restart, and refuse topologies that cannot work."""

import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.rendezvous import rendezvous

from decero.config.run_config import RunConfig
from decero.config.sections import TrainingSection
from decero.errors import UserError


def process_group_options(timeout: timedelta) -> InitProcessGroupKwargs:
    """Return options for `Accelerator`: use the launcher's store (`env://`) with a separate prefix for each attempt.

    A launcher with `--max_restarts` keeps one store for all attempts. It still holds the addresses of dead workers,
    and a process that reads them before the new ones are written gets "connection refused" (pytorch/pytorch#135712,
    #167288). The launcher of each machine counts the attempts. The counts agree, because when a process dies, those on
    the other machines fail with it.
    """
    restarts = "TORCHELASTIC_RESTART_COUNT" in os.environ
    return InitProcessGroupKwargs(timeout=timeout, init_method="attempt://" if restarts else None)


def _of_this_attempt(url: str, **options) -> Iterator[tuple[dist.Store, int, int]]:
    store, rank, processes = next(rendezvous(url.replace("attempt:", "env:", 1), **options))
    yield dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store), rank, processes


dist.register_rendezvous_handler("attempt", _of_this_attempt)


# What the launcher asks for in the environment, and accelerate would try to do -> its name, what to do instead.
SHARDS = (
    "use accelerate launch --config_file configs/accelerate/fsdp2.yaml, which shards weights, gradients and moments"
)
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", SHARDS),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", SHARDS),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("parallelism_config", SHARDS),
}


def check_launcher() -> None:
    """Refuse what the launcher asks for and no recipe can do, before accelerate tries to.

    Also a bug of `accelerate launch --cpu --num_processes 2`: it starts one process instead of two.
    """
    for variable, (name, mend) in UNSUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(f"topology: {name} is not supported; {mend}")
    several_requested = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if several_requested and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise UserError(
            "topology: the launcher was asked for several processes but started one; on CPU use "
            "accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml ..."
        )


def check_topology(config: RunConfig, accelerator: Accelerator, training: TrainingSection, sharded: bool) -> None:
    """Refuse unsupported topologies, and those that contradict the settings."""
    if str(accelerator.distributed_type).removeprefix("DistributedType.") not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise UserError(f"topology: {accelerator.distributed_type} is not supported; use configs/accelerate/ddp.yaml")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > accelerator.num_processes and not sharded:
        raise UserError(
            f"topology: the launcher started {launched} processes, but without a GPU they would train one by one, each "
            "its own model; on a CPU use accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml ..."
        )
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


def topology_line(accelerator: Accelerator, training: TrainingSection, sharded: bool) -> str:
    """Return a line such as `topology: 2 processes on cpu (multi_cpu, 1 thread each), fp32`."""
    processes, device = accelerator.num_processes, accelerator.device.type
    threads = torch.get_num_threads()
    each = f", {threads} thread{'s' if threads > 1 else ''} each" if device == "cpu" else ""
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.").lower().replace("no", "not distributed")
    precision = training.mixed_precision.replace("no", "fp32") + (", sharded (FSDP2)" if sharded else "")
    return f"topology: {processes} process{'es' if processes > 1 else ''} on {device} ({kind}{each}), {precision}"
