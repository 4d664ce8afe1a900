"""Read what the runs of a comparison left in their folders. Files may be missing or damaged."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from decero.comparison.plan import Plan, PlannedRun
from decero.errors import UserError
from decero.training.metrics_log import read_metrics
from decero.training.records import read_record


def record_in(folder: Path) -> dict[str, Any]:
    """Return a run's result.json; where it is missing or damaged, the record of a failed run.

    A metric that is null (JSON has no NaN) is NaN.
    """
    if not (folder / "result.json").is_file():
        return _failed("left no record")
    try:
        record = read_record(folder)
    except (UserError, OSError) as error:
        return _failed(f"its result.json cannot be read: {error}")
    if not isinstance(record, dict) or record.get("status") not in ("ok", "failed"):
        return _failed("its result.json is damaged")
    numbers = [record.get(name, 0) for name in ("wall_time_s", "num_parameters", "trained_parameters", "total_flos")]
    metric = record.get("metric")
    if not isinstance(metric, dict) or not all(is_number(n) for n in (*numbers, *metric.values()) if n is not None):
        return _failed("its result.json is damaged")
    return record | {"metric": {name: math.nan if value is None else value for name, value in metric.items()}}


def problem_of(plan: Plan, run: PlannedRun, record: dict[str, Any]) -> str | None:
    """Return why a successful run cannot be judged; None if it can, or if it is a trial."""
    if run.trial is not None or plan.metric not in record["metric"]:
        return None
    try:
        scores, _ = plan.task.example_statistics(run.folder, plan.metric)
    except Exception as error:  # a damaged table raises what its reader raises
        return f"its answers cannot be read: {in_one_line(error)}"
    return None if np.isfinite(np.asarray(scores, dtype=float)).all() else f"its {plan.metric} is not finite"


def curve_in(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that can be read."""
    log = folder / "metrics.jsonl"
    return read_metrics(log) if log.is_file() else []


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_one_line(error: BaseException) -> str:
    """Return the message of an error, with its type unless it is written for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _failed(error: str) -> dict[str, Any]:
    return {"status": "failed", "error": error, "metric": {}}
