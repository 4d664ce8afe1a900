"""Measure the peak memory of a training step."""

import gc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from decero.benchmark.arms import Arm


def peak_of_step(arm: Arm) -> dict[str, int]:
    """Measure `held_bytes` and `step_bytes` of an arm.

    held_bytes: weights, buffers and optimizer state. step_bytes: the most that a step needs beyond them, including
    gradients. A GPU is measured by torch's allocator, a CPU by its profiler. Memory that a kernel allocates outside of
    torch, such as scratch space of oneDNN, is not counted.
    """
    arm.step(arm.batches[0])  # one-time allocations do not count
    gc.collect()
    state = [t for s in arm.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    held = sum(t.numel() * t.element_size() for t in [*arm.model.parameters(), *arm.model.buffers(), *state])
    largest = max(arm.batches, key=lambda batch: batch[arm.model.main_input_name].numel())
    if arm.model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        arm.step(largest)
        return {"held_bytes": held, "step_bytes": torch.cuda.max_memory_allocated() - before}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        arm.step(largest)
    results: Any = profiled.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {"held_bytes": held, "step_bytes": peak}
