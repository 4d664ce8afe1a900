"""Write metrics to metrics.jsonl, one JSON object per line, at once, and to accelerate's trackers."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from decero.errors import WriteError, what_failed
from decero.files import write_whole
from decero.training.runs import check_claims, on_main


class MetricsLog:
    """Append to `output/metrics.jsonl` on the main process. Resuming drops lines after the checkpoint's step.

    every: the steps between lines of the loss (`training.logging_steps`). Damaged and missing lines are reported.
    unlogged: rows that could not be written before. On a full disk training goes on; a checkpoint keeps `unwritten`.
    """

    def __init__(
        self, accelerator: Accelerator, output: Path, first_step: int, tag: str = "", every: int | None = None,
        unlogged: Sequence[dict] = (),
    ):  # fmt: skip
        self.accelerator, self.tag, self._written, self._failed = accelerator, tag, 0, False
        self.path = output / "metrics.jsonl"
        *whole, cut = self.path.read_bytes().split(b"\n") if self.path.is_file() else [b""]
        found = [_parse(line) for line in whole]
        self.rows: list[dict] = [row for row in (*found, _parse(cut)) if row and row["step"] <= first_step]
        self.rows += [row for row in unlogged if row not in self.rows]
        damaged = [number for number, row in enumerate(found, start=1) if row is None]
        steps = {row["step"] for row in self.rows if "loss" in row}
        missing = [step for step in range(every, first_step + 1, every) if step not in steps] if every else []
        if damaged or missing:
            what = [f"line {damaged[0]} is damaged"] if damaged else []
            what += [f"{len(missing)} losses up to step {missing[-1]} are missing"] if missing else []
            accelerator.print(f"{self.path}: {', '.join(what)}; the run goes on without these lines")
        on_main(accelerator, self._rewrite)
        on_main(accelerator, self._define_steps)

    @property
    def unwritten(self) -> list[dict]:
        return self.rows[self._written :]

    def write(self, *, step: int, **values: float) -> None:
        """Add a line. Says so when the disk does not take it, and tries again with the next one."""
        if self.rows and self.rows[-1]["step"] == step and values.keys() <= self.rows[-1].keys():
            return  # a resumed run evaluates the last step once more
        self.rows.append({"step": step} | values)
        try:
            if self.accelerator.is_main_process and self._claim_holds():
                self._rewrite() if self._failed else self._append()
            self._track({f"{self.tag}{name}": value for name, value in values.items()}, step)
        except OSError as error:
            if (found := what_failed(error)) is None:
                raise
            if not self._failed:
                line = f"warning: {self.path}: {found[0]}; {found[1]}; training goes on and keeps its lines in memory"
                print(line, file=sys.stderr, flush=True)
            self._failed = True

    def _define_steps(self) -> None:
        """Give the run steps of its own in Weights & Biases, which ignores a step below the last one.

        The runs of a comparison share a tracker, and each begins with step 1.
        """
        for tracker in self.accelerator.trackers:
            if self._has_own_steps(tracker):
                tracker.tracker.define_metric(f"{self.tag}step")
                tracker.tracker.define_metric(f"{self.tag}*", step_metric=f"{self.tag}step")

    def _has_own_steps(self, tracker: GeneralTracker) -> bool:
        return bool(self.tag) and tracker.name == "wandb"

    def _track(self, values: dict[str, float], step: int) -> None:
        for tracker in self.accelerator.trackers:
            if self._has_own_steps(tracker):
                tracker.log(values | {f"{self.tag}step": step}, step=None)
            else:
                tracker.log(values, step=step)

    def _claim_holds(self) -> bool:
        """Tell whether the folder is still this run's. A single process raises WriteError if it is not.

        Several processes raise it together, at the next checkpoint or at the end.
        """
        try:
            check_claims()
            return True
        except WriteError:
            if self.accelerator.num_processes == 1:
                raise
            self._failed = True
            return False

    def finish(self) -> None:
        """Write what is left. All processes must call it. Raises WriteError on all of them when that fails."""
        on_main(self.accelerator, self._rewrite if self._failed else lambda: None)

    def _append(self) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(self.rows[-1]))
        self._written = len(self.rows)

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(map(_line, self.rows)))  # a kill must not destroy the existing log
        self._written, self._failed = len(self.rows), False


def read_metrics(path: Path) -> list[dict]:
    """Return the lines of a log, without damaged ones."""
    return [row for line in path.read_bytes().split(b"\n") if (row := _parse(line))]


def _line(row: dict) -> str:
    """Return a row as JSON, which has no NaN and no infinity: null."""
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _parse(line: bytes) -> dict | None:
    """Parse a line; return None for a damaged one, such as one that a kill cut short."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None
