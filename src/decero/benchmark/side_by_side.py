"""Do small trainings at the same time, each in a process of its own.

On a CPU, two small trainings with a thread each take as long as one with two threads: their operations are too short to
share.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import datasets
import torch
from accelerate import Accelerator

from decero.cores import usable_cores
from decero.errors import UserError, run_script
from decero.execution.denormals import denormals_as_zero
from decero.execution.threads import requested_threads
from decero.training.memory import keep_freed_memory
from decero.training.runs import Run

PATIENCE = 60  # seconds for a stopped training to save its checkpoint
_PROCESSES: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
Make = Callable[..., dict[str, Any]]


def at_once(run: Run) -> int:
    """Return how many trainings go on at a time: one for every core, or for every OMP_NUM_THREADS cores.

    One on an accelerator, which they would share; and one with trackers, which belong to the process of the run.
    """
    if run.accelerator.device.type != "cpu" or run.accelerator.log_with:
        return 1
    return max(1, usable_cores() // (requested_threads() or 1))


def together(
    run: Run, make: Make, arguments: Sequence[tuple], tell: Callable[[dict[str, Any]], Any], count: int
) -> list[dict[str, Any]]:
    """Return `make(run, *each)` for each of `arguments`, in their order; `count` are made at a time.

    make: a function of a module, which keeps its record in a file. tell: called with each record when it is there.

    A signal stops all trainings; each saves a checkpoint first. Raises the UserError of a training, and one for a
    process that ends too early.
    """
    count = min(count, len(arguments))
    if count < 2:
        alone = []
        for each in arguments:
            alone.append(make(run, *each))
            tell(alone[-1])
        return alone
    waiting, records = deque(enumerate(arguments)), {}
    with _workers(run, make, count) as workers:
        busy: dict[Any, Worker] = {worker.ours: worker for worker in workers}
        for worker in workers:
            worker.give(*waiting.popleft())
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]
                number, record = worker.take()
                records[number] = record
                tell(record)
                if waiting:
                    worker.give(*waiting.popleft())
                else:
                    del busy[connection]
    return [records[number] for number in range(len(arguments))]


class Worker:
    """Control a process that does trainings, one after another."""

    def __init__(self, run: Run, make: Make):
        self.ours, theirs = _PROCESSES.Pipe()
        alone: Any = None  # an accelerator cannot be sent to a process, which makes its own
        whole = replace(run, accelerator=alone)
        precision, threads = str(run.accelerator.mixed_precision), requested_threads() or 1
        self.child = _PROCESSES.Process(target=serve, args=(theirs, whole, make, precision, threads), daemon=True)
        self.child.start()
        theirs.close()  # so that reading fails when the child ends
        self.trains = False

    def give(self, number: int, arguments: tuple) -> None:
        self.ours.send((number, arguments))
        self.trains = True

    def take(self) -> tuple[int, dict[str, Any]]:
        """Return number and record of the training that it has done. Raises UserError."""
        try:
            number, record = self.ours.recv()
        except (EOFError, ConnectionResetError):
            self.child.join()
            why = "probably out of memory" if self.child.exitcode == -signal.SIGKILL else "see above"
            raise UserError(f"a training's process ended with {self.child.exitcode}, {why}") from None
        self.trains = False
        if isinstance(record, UserError):
            raise record
        return number, record

    def stop(self) -> None:
        """Close the pipe, so that the process ends. A running training saves a checkpoint first."""
        self.ours.close()
        if self.trains:
            self.child.terminate()

    def join(self) -> None:
        self.child.join(timeout=PATIENCE)
        self.child.kill()
        self.child.join()


@contextmanager
def _workers(run: Run, make: Make, count: int) -> Iterator[list[Worker]]:
    if sys.platform == "linux":
        _PROCESSES.set_forkserver_preload([__name__, make.__module__])
    own = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers
    before = signal.signal(signal.SIGTERM, _leave) if own else None
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(Worker(run, make))
        yield workers
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()
        if own:
            signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def serve(theirs: Connection, run: Run, make: Make, precision: str, threads: int) -> None:
    """Run in the child: do trainings until the parent needs no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between trainings; a training saves a checkpoint at Ctrl-C
    os.dup2(2, 1)  # keep prints of libraries out of the tables
    run_script(lambda: _serve(theirs, run, make, precision, threads))


def _serve(theirs: Connection, run: Run, make: Make, precision: str, threads: int) -> None:
    torch.set_num_threads(threads)
    datasets.disable_progress_bars()
    keep_freed_memory()
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    accelerator.gradient_accumulation_steps = 1  # else accelerate would divide the loss again
    run = replace(run, accelerator=accelerator, progress=False)
    with denormals_as_zero():
        while True:
            try:
                number, arguments = theirs.recv()
            except EOFError:  # the parent is gone
                return
            try:
                record: Any = make(run, *arguments)
            except UserError as error:
                record = error
            theirs.send((number, record))
