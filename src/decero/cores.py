"""Count the cores that this process may use: its affinity, and the CPU quota of its container."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """Return the cores of this process: those of its affinity, at most those of its container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, cpu_quota())))


def cpu_quota(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the cores that cgroups allow (Docker's --cpus, Kubernetes' limits), for example 1.5; else infinity.

    A quota of a group also binds the groups in it. Version 2 writes `200000 100000` to cpu.max, version 1 writes the
    two numbers (microseconds of processor time, and of which period) to two files.
    """
    quotas = [math.inf]
    for folder in _groups(mounted, own):
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = ((folder / name).read_text() for name in names)
            if quota != "max" and int(quota) > 0:
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such group: a container may not see its own path
            continue
    return min(quotas)


def _groups(mounted: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups and of all groups around them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = (mounted, mounted / "unified") if not controllers else (mounted / controllers, mounted / "cpu")
        inside = Path(path.lstrip("/"))
        for root in roots:
            yield from (root / part for part in (inside, *inside.parents))
