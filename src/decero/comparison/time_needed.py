"""Estimate the time of a comparison before it starts, for `--dry-run`."""

from dataclasses import replace
from typing import Any, NamedTuple

from decero.comparison.plan import SPLITS, Plan, PlannedRun
from decero.errors import UserError
from decero.execution.objective import Objective
from decero.formatting import duration
from decero.planning.probe import probe, sample_load, time_evaluation
from decero.tasks import TASKS, Task, TaskData
from decero.training.data_loader import step_loader
from decero.training.runs import Run

SECONDS = 3.0  # of timed steps per contender


def time_needed(plan: Plan, opened: Run) -> list[str]:
    """Return a line per contender and one for all: how long their runs take on this machine.

    Times a few real steps of each contender at its first label budget. Baselines take a second and are not counted.
    A contender whose model cannot be loaded yet has an unknown time.
    """
    lines, total, unknown = [], 0.0, False
    for name in plan.comparison.contenders:
        runs = [run for run in (*plan.trials, *plan.runs) if run.contender == name and run.baseline is None]
        if not runs:
            continue
        try:
            seconds = _seconds(plan, runs, opened)
        except UserError as error:
            lines.append(f"{name}: {len(runs)} runs, time unknown: {error}")
            unknown = True
            continue
        lines.append(f"{name}: {len(runs)} runs, {duration(seconds)}")
        total += seconds
    rest = ", and what is unknown" if unknown else ""
    return [*lines, f"all runs: about {duration(total)}{rest}, from timing a few steps; reading and saving not counted"]


def _seconds(plan: Plan, runs: list[PlannedRun], opened: Run) -> float:
    seconds, timed = 0.0, None
    for first in {(run.budget, str(run.values)): run for run in runs}.values():
        same = [run for run in runs if (run.budget, run.values) == (first.budget, first.values)]
        settings = first.config
        run = replace(opened.with_settings(settings), output=first.folder, seed=settings.seed, progress=False)
        task = TASKS[plan.comparison.task](settings)
        data = task.load_data(run, SPLITS if task.splits else None)
        timed = timed or _timed(plan, task, data, run)
        loader = step_loader(run.accelerator, data.train, timed.objective, run.training, run.seed)
        seconds += len(same) * (task.preparation_s + loader.last * timed.step_s + timed.scoring_s)
    return seconds


class _Timed(NamedTuple):
    """Seconds of a step and of the final evaluation."""

    step_s: float
    scoring_s: float
    objective: Objective


def _timed(plan: Plan, task: Task, data: TaskData, run: Run) -> _Timed:
    model = task.build_model()
    plain = task.objective(model)
    objective = task.optimize(run, model, data)
    step = probe(run, model, objective, data.train, sample_load(run, data.train, objective), SECONDS)
    writes = type(task).scoring_pass is not Task.scoring_pass
    scored = sum(len(rows) for rows in data.held_out.get(plan.split, {}).values())
    rows = data.validation
    if rows is None and writes:
        rows = TaskData(data.train, {"validation": data.held_out.get(plan.split, {})}).validation
    share = scored / len(rows) if rows is not None else 0.0  # the evaluation of a task needs its validation rows

    def score(model: Any, rows: Any) -> Any:
        return task.scoring_pass(run, model, rows, data) if writes else task.evaluate(run, model, rows, data)

    size = run.training.per_device_eval_batch_size
    scoring_s = time_evaluation(run.accelerator, score, model, objective, rows, size)
    return _Timed(step.step_s, share * scoring_s, plain)
