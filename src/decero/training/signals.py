"""Handle SIGTERM and Ctrl-C during training: finish the current step, save it, then stop."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Record signals instead of ending the process; a second Ctrl-C ends it as usual.

    Schedulers (SLURM, Kubernetes, spot instances) send SIGTERM before they take a machine back.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def anywhere(self) -> int:
        """Return the signal that any process received, or 0. All processes must call it; all get the same."""
        if self.accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())

    def end(self, number: int, step: int, last: int) -> None:
        """Print a line and exit with code 128 + the signal number, as shells report it."""
        name = signal.Signals(number).name
        self.accelerator.print(
            f"stopped by {name} after step {step} of {last}; checkpoint saved, continue with --resume"
        )
        raise SystemExit(128 + number)
