"""SIGTERM and Ctrl-C during training: the step at hand is finished and saved, then the run ends."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Inside, a signal is taken note of instead of ending the process; the second Ctrl-C ends it as always.

    What schedulers send before they take a machine back (SLURM, Kubernetes, spot instances) is SIGTERM.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def anywhere(self) -> int:
        """The signal that some process got, 0 for none; all processes must ask, and all hear the same."""
        if self.accelerator.num_processes == 1:
            return self.received
        mine = torch.tensor([self.received], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max())

    def end(self, number: int, step: int, last: int) -> None:
        """Say so and leave, as a process that was ended by the signal would: exit code 128 + its number."""
        name = signal.Signals(number).name
        self.accelerator.print(f"stopped by {name} after step {step} of {last}, which is saved; --resume goes on")
        raise SystemExit(128 + number)
