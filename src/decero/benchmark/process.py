"""Run each arm in its own process, with its own allocator and thread settings.

On Linux a server process forks them after all imports.
"""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from decero.benchmark.arms import build_arms
from decero.benchmark.batches import make_texts
from decero.benchmark.decoding import build_decoders, sources_of
from decero.benchmark.measure import timed
from decero.benchmark.peak_memory import peak_of_step
from decero.benchmark.workloads import build_pair
from decero.config.benchmark import ArmName, Workload
from decero.errors import UserError, run_script
from decero.training.memory import keep_freed_memory
from decero.training.runs import multiply_in_tf32

PATIENCE = 10  # seconds to wait for an arm to end; it may be inside a unit
_FORKS = sys.platform == "linux"  # some libraries of macOS do not survive a fork
_PROCESSES: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")


class ArmProcess:
    """Control an arm in a child process.

    A call runs one unit (training or decoding) and returns its seconds, measured in the child.
    """

    def __init__(self, name: str, work: Workload, arm: ArmName, device: torch.device, seed: int):
        self.name = f"works.{name}: {arm}"
        self.ours, theirs = _PROCESSES.Pipe()
        threads = torch.get_num_threads()
        self.child = _PROCESSES.Process(target=serve, args=(theirs, name, work, arm, device, seed, threads))
        self.child.start()
        theirs.close()  # so that reading fails when the child ends

    def __call__(self) -> float:
        return self._ask("run")["seconds"]

    def facts(self) -> dict[str, Any]:
        """Wait until the arm is built; return `parameters`, `says`, and `loss` or `written`."""
        return self._answer()

    def memory(self) -> dict[str, int]:
        """Return the result of `peak_of_step`."""
        return self._ask("memory")

    def end(self) -> None:
        self.ours.close()  # a waiting child then ends by itself
        self.child.join(timeout=PATIENCE)
        self.child.kill()
        self.child.join()

    def _ask(self, word: str) -> dict[str, Any]:
        try:
            self.ours.send(word)
        except BrokenPipeError:
            self._ended()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            return self.ours.recv()
        except (EOFError, ConnectionResetError):
            return self._ended()

    def _ended(self) -> Any:
        self.child.join()
        code = self.child.exitcode
        killed = "probably out of memory, because all arms are loaded at once; lower batch_size and set another output"
        raise UserError(
            f"{self.name}: its process ended with {code}, {killed if code == -signal.SIGKILL else 'see above'}"
        )


def memory_of(arms: Mapping[str, ArmProcess]) -> dict[str, dict[str, int]]:
    """Measure the memory of each arm; print an error for one that fails, and go on."""
    memory = {}
    for arm, each in arms.items():
        try:
            memory[arm] = each.memory()
        except UserError as error:
            print(f"memory: {error}", file=sys.stderr)
    return memory


@contextmanager
def processes(
    name: str, work: Workload, device: torch.device, seed: int
) -> Iterator[tuple[dict[str, ArmProcess], dict[str, Any]]]:
    """Start the arms of a workload; give their controllers and facts. They end with the block.

    Raises UserError if a process ends too early.
    """
    if _FORKS:
        _PROCESSES.set_forkserver_preload([__name__, "decero.benchmark.summary"])
    arms: dict[str, ArmProcess] = {}
    try:
        for arm in work.arms():
            arms[arm] = ArmProcess(name, work, arm, device, seed)
        yield arms, {arm: each.facts() for arm, each in arms.items()}
    finally:
        for each in arms.values():
            each.end()


def serve(
    theirs: Connection, name: str, work: Workload, arm: ArmName, device: torch.device, seed: int, threads: int
) -> None:
    """Run in the child: build the arm, send its facts, then answer requests until the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    os.environ["KINETO_LOG_LEVEL"] = "99"  # silence the profiler
    os.dup2(2, 1)  # keep prints of libraries out of the tables
    run_script(lambda: _serve(theirs, name, work, arm, device, seed, threads))


def _serve(
    theirs: Connection, name: str, work: Workload, arm: ArmName, device: torch.device, seed: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    allocator = "default of the C library"
    if device.type != "cpu":
        multiply_in_tf32()
    elif work.tricks and work.kind != "decode" and not arm.startswith("stock"):
        keep_freed_memory()  # as in a decero run
        allocator = "freed memory is kept"
    pair = build_pair(name, work, seed)
    texts = make_texts(name, work, pair[0].config, seed)
    unit: Any
    if work.kind == "decode":
        unit = build_decoders(work, pair, sources_of(texts), device, seed)[arm]
        unit()
        facts = {"written": unit.written}
    else:
        unit = build_arms(work, pair, texts, device, seed, [arm])[arm]
        facts = {"loss": unit.plain_loss()}
        if work.compile and not arm.startswith("stock"):
            unit()  # compile now, while the other one does so too
    del pair
    gc.collect()
    gc.freeze()  # exclude current objects, so that later collections are quick
    gc.disable()
    theirs.send(facts | {"parameters": unit.model.num_parameters(), "says": [*unit.says, f"allocator: {allocator}"]})
    while True:
        release(device)  # while no other arm is timed
        try:
            word = theirs.recv()
        except EOFError:
            return
        if word == "run" and device.type == "cuda":
            unit()  # takes the memory again, and raises the clock
        theirs.send({"seconds": timed(unit, device)} if word == "run" else peak_of_step(unit))


def release(device: torch.device) -> None:
    """Give the memory of the last unit back: all arms share one GPU, and each may need most of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
