"""Choose the number of threads: OMP_NUM_THREADS if the user sets it, else the cores that this process may use."""

import os
from pathlib import Path

import torch

from decero.cores import usable_cores


def set_threads(processes: int = 1) -> None:
    """Set torch's threads. processes: how many share this machine."""
    torch.set_num_threads(requested_threads() or max(1, usable_cores() // processes))


def requested_threads() -> int | None:
    """Return the user's OMP_NUM_THREADS; None if it is not set, or no number above 0.

    accelerate's launcher and torchrun set it themselves when the user does not: to one, or to the cores of the whole
    machine. Under a launcher the value counts only if the launcher was started with it (known on Linux).
    """
    value = os.environ.get("OMP_NUM_THREADS")
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        value = _environment_of(os.getppid()).get("OMP_NUM_THREADS")
    first = (value or "").partition(",")[0].strip()  # a list is for nested loops
    return int(first) if first.isdecimal() and int(first) else None


def _environment_of(process: int) -> dict[str, str]:
    """Return the environment that another process was started with; empty if it cannot be read."""
    try:
        words = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)
