"""Read the results of tuning trials from their folders."""

import math

from decero.comparison.plan import Plan, PlannedRun
from decero.comparison.run_records import record_in
from decero.evaluation.metrics import higher_is_better
from decero.evaluation.tuning_curve import Tuning


def tuning_of(plan: Plan, contender: str, budget: int | None) -> Tuning:
    """Return the trials of one contender at one label budget."""
    records = [
        (run, record_in(run.folder)) for run in plan.trials if (run.contender, run.budget) == (contender, budget)
    ]
    metric = plan.task.validation_metric(plan.metric)
    if any(metric not in record["metric"] for _, record in records if record["status"] == "ok"):
        metric = "loss"  # e.g. there are no bits a byte if the tokens do not give the text back

    tried = []
    for run, record in records:
        score = float(record["metric"].get(metric, math.nan))
        tried.append((run.values, score if math.isfinite(score) else None))
    return Tuning(contender, budget, metric, higher_is_better(metric), tuple(tried))


def tunings(plan: Plan) -> list[Tuning]:
    """Return the tuning of every contender and budget, in the order of the trials."""
    pairs = dict.fromkeys((run.contender, run.budget) for run in plan.trials)
    return [tuning_of(plan, contender, budget) for contender, budget in pairs]


def failure(plan: Plan, run: PlannedRun) -> str:
    """Say why no trial of this contender and budget has a score."""
    errors = [
        record_in(t.folder).get("error") for t in plan.trials if (t.contender, t.budget) == (run.contender, run.budget)
    ]
    return f"every trial failed, the first with: {next(filter(None, errors), 'a score that is not finite')}"
