"""Make one run of the folds of a cross-validation: each row of train is answered by a model that never saw it."""

import statistics
from typing import Any

import pandas as pd

from decero.comparison.plan import Plan, PlannedRun
from decero.comparison.run_records import record_in
from decero.evaluation.metrics import compute_metrics
from decero.evaluation.per_class import per_class
from decero.files import remove
from decero.training.records import write_result
from decero.training.runs import Run


def pool_folds(plan: Plan, opened: Run) -> None:
    """Write predictions.parquet and result.json of all folds of each seed; nothing without folds.

    The predictions stand in the order of the user's rows, with their fold. A seed fails if one of its folds failed.
    """
    for run in plan.judged if plan.comparison.folds else ():
        parts = [part for part in plan.runs if part.folder.parent == run.folder]
        write_result(
            run.folder, opened.accelerator, {"seed": run.seed, "folds": len(parts)} | _pooled(plan, run, parts, opened)
        )


def _pooled(plan: Plan, run: PlannedRun, parts: list[PlannedRun], opened: Run) -> dict[str, Any]:
    records = [record_in(part.folder) for part in parts]
    for part, record in zip(parts, records, strict=True):
        if record["status"] != "ok":
            if opened.is_main:
                remove(run.folder / "predictions.parquet")  # of an earlier attempt
            return {"status": "failed", "error": f"fold {part.fold}: {record.get('error')}", "metric": {}}
    tables = [pd.read_parquet(part.folder / "predictions.parquet").assign(fold=part.fold) for part in parts]
    table = pd.concat(tables).sort_values("row", ignore_index=True)
    table["index"] = table.index
    if opened.is_main:
        table.to_parquet(run.folder / "predictions.parquet", index=False)
    problem: str = plan.task.problem_type  # type: ignore[attr-defined]
    predictions, labels, names = table["prediction"].tolist(), table["label"].tolist(), records[0]["label_names"]
    facts = {"label_names": names, "rows": len(table)} | per_class(problem, predictions, labels, names)
    for name in ("wall_time_s", "total_flos"):  # of one training
        facts[name] = statistics.median(record.get(name, 0) for record in records)
    for name in ("num_parameters", "trained_parameters", "peak_memory_bytes"):
        facts[name] = round(statistics.median(record.get(name) or 0 for record in records))
    return {"status": "ok", "metric": compute_metrics(problem, predictions, labels)} | facts
