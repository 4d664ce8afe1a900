"""Write metrics to metrics.jsonl, one JSON object per line, at once, and to accelerate's trackers."""

import json
from pathlib import Path

from accelerate import Accelerator


class MetricsLog:
    """Append to `output/metrics.jsonl` on the main process. Resuming drops lines after the checkpoint's step."""

    def __init__(self, accelerator: Accelerator, output: Path, first_step: int, tag: str = ""):
        self.accelerator, self.tag = accelerator, tag
        self.path = output / "metrics.jsonl"
        self.rows: list[dict] = []
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.rows = [row for row in map(_parse, lines) if row and row["step"] <= first_step]
        if accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = output / ".metrics.jsonl.tmp"  # a kill must not destroy the existing log
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
            temporary.replace(self.path)

    def write(self, *, step: int, **values: float) -> None:
        self.rows.append({"step": step} | values)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")
        self.accelerator.log({f"{self.tag}{name}": value for name, value in values.items()}, step=step)


def _parse(line: str) -> dict | None:
    """Parse a line; return None for one that a kill cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
