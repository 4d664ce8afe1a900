"""Examine the contenders of a comparison. Shared findings are printed once."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from decero.comparison.plan import Plan, PlannedRun, make_plan
from decero.comparison.tuning import tuning_of
from decero.config.comparison import Compare
from decero.config.yaml_files import read_yaml
from decero.doctor.examination import examine
from decero.doctor.findings import Finding, NotExaminedError
from decero.doctor.inspected_run import asks_for_code, inspect, refused_change
from decero.errors import UserError


def settings_of_comparison(where: str) -> Path | None:
    """Return the configuration of a comparison: the file itself, or config.yaml of its folder; None for others."""
    path = Path(where) / "config.yaml" if os.path.isdir(where) else Path(where)
    try:
        return path if "contenders" in read_yaml(path) else None
    except UserError:  # said by the examination of a run
        return None


def diagnose_comparison(
    path: Path, folder: Path | None, recipe: str | None, changes: Sequence[str] = ()
) -> Iterator[Finding]:
    """Yield the findings of all contenders that are models, each at its largest label budget and first seed.

    A finding of every contender comes first and once; others name their contender. folder: of a comparison that ran;
    its logs and files are examined, too. Raises UserError as the recipe does before its first run.
    """
    if recipe:
        raise NotExaminedError(f"--recipe: {path} is a comparison, which names its task itself; remove it")
    if folder and asks_for_code(read_yaml(path)):
        raise NotExaminedError(
            f"{path}: this folder asks to run remote code (trust_remote_code); if you trust it, give your own "
            "configuration file instead"
        )
    if folder and changes:
        raise refused_change(str(folder), changes)
    comparison = Compare.load(str(path), changes)
    plan = make_plan(comparison.model_copy(update={"output": str(folder)}) if folder else comparison)
    found = {name: list(examine(_inspected(plan, run, folder))) for name, run in _examined(plan).items()}
    if not found:
        raise NotExaminedError(f"{path}: it compares baselines alone; the doctor examines models")
    first, *others = found.values()
    shared = [finding for finding in first if all(finding in each for each in others)]
    yield from shared
    for name, findings in found.items():
        for finding in findings:
            if finding not in shared:
                yield replace(finding, where=f"{name}, {finding.where}" if finding.where else name)


def _examined(plan: Plan) -> dict[str, PlannedRun]:
    """Return contender -> its run with the most labels and the first seed."""
    chosen: dict[str, PlannedRun] = {}
    for run in plan.runs:
        best = chosen.get(run.contender)
        if run.baseline is None and (best is None or _labels(run) > _labels(best)):
            chosen[run.contender] = run
    return chosen


def _labels(run: PlannedRun) -> float:
    return float("inf") if run.budget is None else run.budget


def _inspected(plan: Plan, run: PlannedRun, folder: Path | None) -> Any:
    if folder and plan.trials:  # the run had the values that its trials chose
        chosen = tuning_of(plan, run.contender, run.budget, run.fold).chosen
        run = plan.with_values(run, chosen or {})
    return inspect(type(plan.task), run.config, run.folder if folder and run.folder.is_dir() else None)
