"""An arm in a process of its own, as a user would run it: what one does to allocator and threads, no other one meets.

On Linux they are forked from one server that has imported all there is to import.
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

PATIENCE = 10  # seconds for an arm to end, which may be in the midst of a unit
_FORKS = sys.platform == "linux"  # macOS has libraries that do not outlive a fork
_PROCESSES: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")


class ArmProcess:
    """Called, the arm trains or decodes one unit; returned are the seconds of that, as its own process counts them."""

    def __init__(self, name: str, work: Workload, arm: ArmName, device: torch.device, seed: int):
        self.name = f"works.{name}: {arm}"
        self.ours, theirs = _PROCESSES.Pipe()
        threads = torch.get_num_threads()
        self.child = _PROCESSES.Process(target=serve, args=(theirs, name, work, arm, device, seed, threads))
        self.child.start()
        theirs.close()  # when the child ends, nobody holds this end any more, and to read from the other is an error

    def __call__(self) -> float:
        return self._ask("run")["seconds"]

    def facts(self) -> dict[str, Any]:
        """Waits until the arm is built. `parameters`, `says`, and `loss` of the first batch or what was `written`."""
        return self._answer()

    def memory(self) -> dict[str, int]:
        """`held_bytes` and `step_bytes` as `peak_of_step` counts them."""
        return self._ask("memory")

    def end(self) -> None:
        self.ours.close()  # who waits for a word ends by itself, and leaves nothing behind
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
        killed = "probably for want of memory, for all arms are held at once; lower its batch_size (another output=)"
        raise UserError(
            f"{self.name}: its process ended with {code}, {killed if code == -signal.SIGKILL else 'see above'}"
        )


def memory_of(arms: Mapping[str, ArmProcess]) -> dict[str, dict[str, int]]:
    """Of every arm that lives to say: what was timed is not lost for it."""
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
    """The arms of a work, built and waiting, and the facts of each; they end with the block.

    Raises UserError when a process ends before it is told to.
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
    """What the child does: build the arm, send its facts, then answer each word until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends this one
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler talks
    os.dup2(2, 1)  # what a library prints is no part of the tables
    run_script(lambda: _serve(theirs, name, work, arm, device, seed, threads))


def _serve(
    theirs: Connection, name: str, work: Workload, arm: ArmName, device: torch.device, seed: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    allocator = "the C library's, as it is"
    if device.type != "cpu":
        multiply_in_tf32()
    elif work.tricks and work.kind != "decode" and not arm.startswith("stock"):
        keep_freed_memory()  # as a run of ours does
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
    del pair
    gc.collect()
    gc.freeze()  # what is there now stays; collecting what a unit leaves is then quick
    gc.disable()
    theirs.send(facts | {"parameters": unit.model.num_parameters(), "says": [*unit.says, f"allocator: {allocator}"]})
    while True:
        try:
            word = theirs.recv()
        except EOFError:
            return
        said = {"seconds": timed(unit, device)} if word == "run" else peak_of_step(unit)
        gc.collect()  # while nobody else is timed
        theirs.send(said)
