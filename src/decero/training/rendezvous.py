"""Set up the rendezvous of the processes of a run, with separate addresses for each restart."""

import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.rendezvous import rendezvous


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
