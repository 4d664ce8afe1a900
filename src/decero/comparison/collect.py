"""Collect the results of all runs and judge them."""

from pathlib import Path
from typing import Any

from decero.comparison.plan import Plan, PlannedRun
from decero.data.packages import resolve_package_path
from decero.evaluation.corpus_tests import Score
from decero.evaluation.verdict import ScoredRun, Verdict, judge
from decero.training.metrics_log import read_metrics
from decero.training.records import read_record


def verdict_of(plan: Plan) -> tuple[Verdict, list[ScoredRun]]:
    """Return the verdict and the scored runs. Predictions are read from disk, not made again."""
    score: Score | None = None
    runs = []
    for planned in plan.runs:
        record = _read(planned)
        scores, curve = None, []
        if record["status"] == "ok" and plan.metric in record["metric"]:
            scores, score = plan.task.example_statistics(planned.folder, plan.metric)
        if record["status"] == "ok" and (log := planned.folder / "metrics.jsonl").is_file():
            curve = read_metrics(log)
        runs.append(
            ScoredRun(
                contender=planned.contender, budget=planned.budget, seed=planned.seed, status=record["status"],
                error=record.get("error"), metrics=record["metric"], scores=scores, curve=curve,
                wall_time_s=record.get("wall_time_s", 0.0), num_parameters=record.get("num_parameters", 0),
                total_flos=record.get("total_flos", 0.0), upfront_wall_time_s=_pretraining_time(planned),
            )
        )  # fmt: skip
    config = plan.comparison
    verdict = judge(
        runs, metric=plan.metric, reference=config.reference, seed=config.seed, score_of_sum=score,
        incomparable=incomparable(plan), unit=plan.task.budget_unit, split=plan.split,
    )  # fmt: skip
    return verdict, runs


def incomparable(plan: Plan) -> dict[str, str]:
    """Return contender -> why its metric does not compare with the reference's. Failed runs are left to `judge`."""
    reference, metric = plan.comparison.reference, plan.metric
    found: dict[str, dict[str, Any]] = {}
    for run in plan.runs:
        record = _read(run)
        if record["status"] == "ok":
            found.setdefault(run.contender, record)
    lost = {name: _lacks(name, metric) for name, record in found.items() if metric not in record["metric"]}
    if reference in lost:
        return {name: lost.get(name, lost[reference]) for name in found}
    if metric in plan.task.token_metrics and reference in found:
        for name, record in found.items():
            if record.get("tokenizer") != found[reference].get("tokenizer"):
                instead = "; use metric=bits_per_byte" if "bits_per_byte" in plan.task.metrics else ""
                lost.setdefault(name, f"{name} has another tokenizer, and {metric} is a mean over tokens{instead}")
    return lost


def facts(plan: Plan) -> dict[str, str]:
    """Return the facts that a reader of the report needs to repeat the comparison."""
    config, task = plan.comparison, plan.task
    record = next((r for run in plan.runs if (r := _read(run))["status"] == "ok"), None)
    if record is None:
        return {"configuration": f"{config.output}/config.yaml"}
    data: Any = task.config.data
    sizes = {
        f"{split} {part}".strip(): len(rows)
        for split, parts in task.corpus.splits.items()
        for part, rows in parts.items()
        if hasattr(rows, "__len__")
    }
    tasks = getattr(data, "tasks", None)
    sources = [each.name or str(each.files or each.parallel) for each in tasks.values()] if tasks else None
    length = f"the first {data.max_length} tokens of each example" if hasattr(data, "max_length") else ""
    if tasks:
        length = f"at most {data.max_source_length} tokens of a source, {data.max_target_length} of a target"
    elif not task.budget_unit:
        length = f"all of it, in rows of at most {data.max_length} tokens"
    found = {
        "task": config.task,
        "data": "; ".join(sources) if sources else data.name or str(data.files),
        "examples": ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
        "labels": ", ".join(task.corpus.label_names[:20]),
        "text read": length,
        "metric": "; ".join(f"{name} {text}" for name, text in record.get("signatures", {}).items()),
        "machine": f"{record['machine']}, {record['num_processes']} process(es) on {record['device']}",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "commit": str(record["commit"]),
        "command": record["command"],
        "configuration": f"{config.output}/config.yaml",
    }
    return {name: text for name, text in found.items() if text}


def _lacks(name: str, metric: str) -> str:
    if metric == "bits_per_byte":
        return f"the tokens of {name} do not give the text back to the byte"
    return f"{name} has no {metric}"


def _read(run: PlannedRun) -> dict[str, Any]:
    if not (run.folder / "result.json").is_file():
        return {"status": "failed", "error": "left no record", "metric": {}}
    return read_record(run.folder)


def _pretraining_time(run: PlannedRun) -> float:
    """Return the seconds of the user's own pretraining for this checkpoint; 0 for a published one."""
    if run.baseline or run.config.model.name_or_path is None:
        return 0.0
    folder = Path(resolve_package_path(run.config.model.name_or_path))
    record = folder.parent / "result.json"
    return float(read_record(folder.parent).get("wall_time_s", 0.0)) if folder.is_dir() and record.is_file() else 0.0
