"""Time arms in turn, in a changing random order, and compare them in pairs."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from decero.config.devices import device_of


def interleaved(
    arms: Mapping[str, Callable[[], float]], rounds: int, warmup: int, seed: int,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Call all arms in each round; return the seconds per arm and round, without warm-up.

    arms: name -> function that returns its seconds. tick: called after each arm.
    Every second round uses the reverse order of the one before (ABBA). So a machine that slowly gets faster or slower
    favours no arm.
    """
    rng, names = np.random.default_rng(seed), list(arms)
    times: dict[str, list[float]] = {name: [] for name in names}
    order: list[str] = []
    for number in range(warmup + rounds):
        order = order[::-1] if number % 2 else [names[i] for i in rng.permutation(len(names))]
        for name in order:
            seconds = arms[name]()
            if number >= warmup:
                times[name].append(seconds)
            tick()
    return times


def timed(unit: Callable[[], None], device: torch.device) -> float:
    """Return the seconds until the device has finished the unit."""
    synchronize(device)
    started = time.perf_counter()
    unit()
    synchronize(device)
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and extremes."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {
        "median": float(median),
        "quartiles": [float(low), float(high)],
        "extremes": [float(min(values)), float(max(values))],
    }


def paired_ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, Any]:
    """Return the spread of slower / faster over the rounds."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def matmul_peak(device: torch.device, seconds: float = 1.0) -> dict[str, float]:
    """Measure the FLOP/s of the fastest square matrix product per dtype, `seconds` for each."""
    return {
        "fp32": _matmul_peak(device, torch.float32, seconds),
        "bf16": _matmul_peak(device, torch.bfloat16, seconds),
    }


def sheet_peak(device: torch.device) -> dict[str, float] | None:
    """Return the FLOP/s per dtype that the data sheet of a GPU promises; None for a CPU or an unknown GPU."""
    sheet = device_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if sheet is None else {"fp32": sheet.fp32, "bf16": sheet.bf16}


@torch.no_grad()
def _matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    best, ends = 0.0, time.perf_counter() + seconds
    for size in (512, 1024, 2048, 4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for trial in range(20):
            synchronize(device)
            started = time.perf_counter()
            a @ b
            synchronize(device)
            spent = time.perf_counter() - started
            if trial or size > 512:  # the first product also loads kernels
                best = max(best, 2 * size**3 / spent)
            if trial and time.perf_counter() > ends:
                return best
        if time.perf_counter() + 16 * spent > ends:  # the next size takes 8 times as long, and runs at least twice
            break
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
