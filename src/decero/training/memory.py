"""Memory of the process and the accelerator: the peak of a run, and freed memory that is kept for the next step."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator


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
