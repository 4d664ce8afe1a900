"""Read the results of tuning trials from their folders."""

import math

from decero.comparison.plan import Plan, PlannedRun
from decero.comparison.run_records import record_in
from decero.evaluation.metrics import higher_is_better
from decero.evaluation.tuning_curve import Tuning


def tuning_of(plan: Plan, contender: str, budget: int | None, fold: int | None = None) -> Tuning:
    """Return the trials of one contender at one label budget, and in one fold."""
    records = [
        (run, record_in(run.folder))
        for run in plan.trials
        if (run.contender, run.budget, run.fold) == (contender, budget, fold)
    ]
    metric = plan.task.validation_metric(plan.metric)
    if any(metric not in record["metric"] for _, record in records if record["status"] == "ok"):
        metric = "loss"  # e.g. there are no bits a byte if the tokens do not give the text back

    tried = []
    for run, record in records:
        score = float(record["metric"].get(metric, math.nan))
        tried.append((run.values, score if math.isfinite(score) else None))
    return Tuning(contender, budget, metric, higher_is_better(metric), tuple(tried), fold)


def tunings(plan: Plan) -> list[Tuning]:
    """Return the tuning of every contender, budget and fold, in the order of the trials."""
    return [tuning_of(plan, *key) for key in dict.fromkeys((t.contender, t.budget, t.fold) for t in plan.trials)]


def failure(plan: Plan, run: PlannedRun) -> str:
    """Say why no trial of this contender, budget and fold has a score."""
    same = [t for t in plan.trials if (t.contender, t.budget, t.fold) == (run.contender, run.budget, run.fold)]
    errors = [record_in(trial.folder).get("error") for trial in same]
    return f"every trial failed, the first with: {next(filter(None, errors), 'a score that is not finite')}"
