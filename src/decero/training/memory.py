"""Measure peak memory, and keep freed memory for the next step."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, because the next step needs it again. No effect with other C libraries.

    By default glibc takes each tensor above 32 MiB from the system, which fills it with zeros page by page, and
    returns it at once (mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD). PyTorch's CPU guide uses jemalloc for this purpose.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never return memory


def release_freed_memory() -> None:
    """Return the memory that `keep_freed_memory` kept: to measure, or before other work that needs other pieces."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> None:
    """Reset the peak, so that each of several runs in one process gets its own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    release_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets the peak to the current resident set


def peak_memory(accelerator: Accelerator) -> int:
    """Return the peak memory in bytes: of the GPU if there is one, else of the process."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource  # missing on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU or CPU ran out of memory. CPU errors have no exception type of their own."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in message for sign in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    )
