"""Peak memory of a training step, in a process of its own, so that measuring it disturbs no clock.

The parent calls `measure_memory`; the child is `python -m decero.benchmark.memory`: settings on its standard input, a
line of JSON an arm on its standard output.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from decero.benchmark.arms import Arm, build_arms
from decero.benchmark.batches import make_texts
from decero.benchmark.works import Work, build_pair


def measure_memory(
    works: Mapping[str, Work], device: torch.device, seed: int, tick: Callable[[], Any] = lambda: None
) -> dict[str, dict[str, dict[str, int]]]:
    """work -> arm -> {"held_bytes", "step_bytes"}; arms that the child did not live to measure are missing."""
    asked = {"works": {name: work.model_dump() for name, work in works.items()}, "device": str(device), "seed": seed}
    asked["threads"] = torch.get_num_threads()
    found: dict[str, dict[str, dict[str, int]]] = {name: {} for name in works}
    with subprocess.Popen(
        [sys.executable, "-m", "decero.benchmark.memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"KINETO_LOG_LEVEL": "99"},  # the profiler talks
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(asked))
        child.stdin.close()
        for line in child.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                found[said.pop("work")][said.pop("arm")] = said
                tick()
    if child.returncode:
        print(f"memory: not all of it was measured, for the process ended with {child.returncode}", file=sys.stderr)
    return found


def peak_of_step(arm: Arm) -> dict[str, int]:
    """held_bytes: weights and optimizer state. step_bytes: the most that a step takes beyond them, gradients included.

    On a GPU as torch's allocator counts, on a CPU as its profiler sees tensors come and go; what a kernel allocates
    behind torch's back (oneDNN's scratch space) is in neither.
    """
    arm.step(arm.batches[0])  # what is made once is no part of a step
    gc.collect()
    state = [t for s in arm.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    held = sum(t.numel() * t.element_size() for t in [*arm.model.parameters(), *arm.model.buffers(), *state])
    largest = max(arm.batches, key=lambda batch: batch["input_ids"].numel())
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


def main() -> None:
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    device, seed = torch.device(asked["device"]), asked["seed"]
    for name, settings in asked["works"].items():
        work = Work.model_validate(settings)
        for arm in work.arms():
            pair = build_pair(name, work, seed)
            texts = make_texts(name, work, pair[0].config, seed)
            built = build_arms(work, pair, texts, device, seed, [arm])
            print(json.dumps({"work": name, "arm": arm} | peak_of_step(built[arm])), flush=True)
            del pair, built
            gc.collect()


if __name__ == "__main__":
    main()
