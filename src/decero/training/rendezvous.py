"""Where the processes of a run find each other, once for each time that the launcher starts them."""

import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.rendezvous import rendezvous


def meeting(timeout: timedelta) -> InitProcessGroupKwargs:
    """How `Accelerator` should begin: over the launcher's store (`env://`), each attempt under a name of its own.

    A launcher with `--max_restarts` keeps one store for all attempts. The addresses of processes that died still stand
    in it: "connection refused" to who reads them before the new ones are written (pytorch/pytorch#135712, #167288).
    Attempts are counted by the launcher of each machine; when a process dies, those of the other machines fail with
    it, so the counts agree.
    """
    own_name = "TORCHELASTIC_RESTART_COUNT" in os.environ
    return InitProcessGroupKwargs(timeout=timeout, init_method="attempt://" if own_name else None)


def _of_this_attempt(url: str, **options) -> Iterator[tuple[dist.Store, int, int]]:
    store, rank, processes = next(rendezvous(url.replace("attempt:", "env:", 1), **options))
    yield dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store), rank, processes


dist.register_rendezvous_handler("attempt", _of_this_attempt)
