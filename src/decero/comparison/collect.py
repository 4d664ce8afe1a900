"""Collect the results of all runs and judge them."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from decero.comparison.plan import Plan, PlannedRun, own_settings
from decero.comparison.run_records import curve_in, is_number, record_in
from decero.config.comparison import Contender
from decero.data.packages import resolve_package_path
from decero.errors import UserError
from decero.evaluation import wording
from decero.evaluation.advice import advise
from decero.evaluation.confusion import LabelScores, mean_scores
from decero.evaluation.corpus_tests import Score
from decero.evaluation.verdict import ScoredRun, Verdict, judge
from decero.training.records import read_record

AGAIN = "mend it and start the same command again with --resume, which runs only what failed"
MOST_LETTERS = 300  # of an error in a sentence


def verdict_of(plan: Plan) -> tuple[Verdict, list[ScoredRun]]:
    """Return the verdict and the scored runs. Predictions are read from disk, not made again."""
    score: Score | None = None
    runs = []
    for planned in plan.judged:
        record = record_in(planned.folder)
        scores, curve = None, []
        if record["status"] == "ok":
            curve = curve_in(planned.folder if planned.fold is None else planned.folder / "fold-0")
            if plan.metric in record["metric"]:
                scores, score = plan.task.example_statistics(planned.folder, plan.metric)
        runs.append(
            ScoredRun(
                contender=planned.contender, budget=planned.budget, seed=planned.seed, status=record["status"],
                error=record.get("error"), metrics=record["metric"], scores=scores, curve=curve,
                wall_time_s=record.get("wall_time_s", 0.0), num_parameters=record.get("num_parameters", 0),
                trained_parameters=record.get("trained_parameters", 0), total_flos=record.get("total_flos", 0.0),
                upfront_wall_time_s=_pretraining_time(planned),
                peak_memory_bytes=record.get("peak_memory_bytes", 0),
                pretraining=_pretraining(plan, planned),
            )
        )  # fmt: skip
    config = plan.comparison
    differing = own_settings(config)
    settings = {name: _own(contender, differing.get(name, {})) for name, contender in config.contenders.items()}

    def against(reference: str) -> Verdict:
        return judge(
            runs, metric=plan.metric, reference=reference, seed=config.seed, score_of_sum=score,
            incomparable=incomparable(plan), unit=plan.task.budget_unit, settings=settings,
            split="cross-validated" if config.folds else plan.split,
        )  # fmt: skip

    verdict = against(config.reference)
    return replace(verdict, advice=advise(verdict, runs, against)), runs


def label_scores(plan: Plan) -> list[LabelScores]:
    """Return the scores of each label, for each contender and budget with a run that succeeded; [] without labels."""
    found: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for run in plan.judged:
        if record_in(run.folder)["status"] == "ok" and (scores := plan.task.label_scores(run.folder)):
            found.setdefault((run.contender, run.budget), []).append(scores)
    return [mean_scores(*key, scores) for key, scores in found.items()]


def failures(runs: Sequence[ScoredRun]) -> list[str]:
    """Return a sentence per contender with failed runs: how many, and why the first one did."""
    sentences = []
    for name in dict.fromkeys(run.contender for run in runs if run.status != "ok"):
        own = [run for run in runs if run.contender == name]
        failed = [run for run in own if run.status != "ok"]
        error = (failed[0].error or "no error was recorded")[:MOST_LETTERS].strip()
        sentences.append(f"{name}: {len(failed)} of {len(own)} runs failed, the first with: {error}")
    return sentences


def check_failures(runs: Sequence[ScoredRun], reference: str) -> None:
    """Warn of failed runs on standard error. Raises UserError when they leave nothing to compare."""
    ok = {run.contender for run in runs if run.status == "ok"}
    failed = failures(runs)
    if reference not in ok:
        error = next(run.error for run in runs if run.contender == reference)
        raise UserError(f"every run of the reference {reference} failed; the first: {error}; {AGAIN}")
    if len({run.contender for run in runs}) > 1 and ok == {reference}:
        raise UserError(f"every contender but the reference failed ({'; '.join(failed)}); {AGAIN}")
    warn_of_failures(runs)


def warn_of_failures(runs: Sequence[ScoredRun]) -> None:
    """Warn of failed runs on standard error."""
    for sentence in failures(runs):
        sys.stderr.write(f"warning: {' '.join(sentence.split())}; {AGAIN}\n")


def incomparable(plan: Plan) -> dict[str, str]:
    """Return contender -> why its metric does not compare with the reference's. Failed runs are left to `judge`."""
    reference, metric = plan.comparison.reference, plan.metric
    found: dict[str, dict[str, Any]] = {}
    for run in plan.judged:
        record = record_in(run.folder)
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
    record = next((r for run in plan.judged if (r := record_in(run.folder))["status"] == "ok"), None)
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
    if hasattr(data, "stride"):
        length = f"all of it, in windows of at most {data.max_length} tokens"
    if tasks:
        length = f"at most {data.max_source_length} tokens of a source, {data.max_target_length} of a target"
    elif not task.budget_unit and hasattr(data, "max_length"):
        length = f"all of it, in rows of at most {data.max_length} tokens"
    found = {
        "task": config.task,
        "folds": f"{config.folds}, of seed {config.seed}" if config.folds else "",
        "data": "; ".join(sources) if sources else data.name or str(data.files),
        "examples": ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
        "labels": ", ".join(task.corpus.label_names[:20]),
        "text read": length,
        "threshold": _thresholds(plan),
        "metric": "; ".join(f"{name} {text}" for name, text in record.get("signatures", {}).items()),
        "machine": f"{record.get('machine')}, {record.get('num_processes')} process(es) on {record.get('device')}",
        "versions": ", ".join(f"{name} {number}" for name, number in dict(record.get("versions") or {}).items()),
        "commit": str(record.get("commit")),
        "command": str(record.get("command")),
        "configuration": f"{config.output}/config.yaml",
    }
    return {name: text for name, text in found.items() if text}


def _thresholds(plan: Plan) -> str:
    """Say which thresholds the runs have; "" for a task without them, and for the usual 0.5."""
    wanted = getattr(plan.task.config.objective, "threshold", 0.5) if hasattr(plan.task.config, "objective") else 0.5
    records: list[Any] = [record_in(run.folder).get("threshold") for run in plan.runs]
    found = sorted({threshold for threshold in records if is_number(threshold)})
    if wanted == 0.5 or not found:
        return ""
    chosen = f"chosen in each run by the {wording.name_of(plan.task.metrics[0])} on validation: "
    return f"{chosen if wanted == 'validation' else ''}{found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "")


def _own(contender: Contender, differing: dict[str, Any]) -> str:
    """Describe the settings of a contender that differ from the shared ones, and its teacher."""
    parts = [f"{key.partition('.')[2]} {value}" for key, value in differing.items()]
    if contender.distill:
        rest = ", ".join(f"{key} {value}" for key, value in contender.distill.items() if key != "teacher")
        who = contender.teacher or contender.distill.get("teacher")
        parts.append(f"taught by {who}{f' ({rest})' if rest else ''}")
    return ", ".join(parts)


def _lacks(name: str, metric: str) -> str:
    if metric == "bits_per_byte":
        return f"the tokens of {name} do not give the text back to the byte"
    return f"{name} has no {metric}"


def _pretraining(plan: Plan, run: PlannedRun) -> str | None:
    """Return the user's own checkpoint that a run starts from; None for random weights and published checkpoints."""
    model = plan.comparison.contenders[run.contender].model
    listed = model is not None and bool(model.pretrained)
    return run.config.model.name_or_path if listed or _pretraining_time(run) else None


def _pretraining_time(run: PlannedRun) -> float:
    """Return the seconds of the user's own pretraining for this checkpoint; 0 for a published one.

    The record beside the checkpoint is not ours: a damaged one says nothing.
    """
    if run.baseline or run.config.model.name_or_path is None:
        return 0.0
    folder = Path(resolve_package_path(run.config.model.name_or_path))
    if not folder.is_dir() or not (folder.parent / "result.json").is_file():
        return 0.0
    try:
        record = read_record(folder.parent)
    except (UserError, OSError):
        return 0.0
    seconds: Any = record.get("wall_time_s") if isinstance(record, dict) else None
    return float(seconds) if is_number(seconds) and 0 <= seconds < math.inf else 0.0
