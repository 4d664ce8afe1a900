"""metrics.jsonl: one JSON object a line, on disk as soon as it is measured, and to accelerate's trackers."""

import json
from pathlib import Path

from accelerate import Accelerator


class MetricsLog:
    """Appends to `output/metrics.jsonl` on the main process. A resume drops the lines after its checkpoint's step."""

    def __init__(self, accelerator: Accelerator, output: Path, first_step: int, tag: str = ""):
        self.accelerator, self.tag = accelerator, tag
        self.path = output / "metrics.jsonl"
        self.rows: list[dict] = []
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.rows = [row for row in map(_parse, lines) if row and row["step"] <= first_step]
        if accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = output / ".metrics.jsonl.tmp"  # a kill must not take the log of what is done
            beside.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
            beside.replace(self.path)

    def write(self, *, step: int, **values: float) -> None:
        self.rows.append({"step": step} | values)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")
        self.accelerator.log({f"{self.tag}{name}": value for name, value in values.items()}, step=step)


def _parse(line: str) -> dict | None:
    """A line that a kill cut short is no line."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
