"""Keep one model of a comparison: of the contender that the verdict ships, the seed that validation prefers.

Until the last contender is done, at most two models are on disk beside the one that is being saved: that of the best
contender so far, and the best one of the contender that is being trained.
"""

import math
import shlex

from decero.comparison.collect import incomparable
from decero.comparison.plan import Plan, PlannedRun
from decero.comparison.run_records import record_in
from decero.evaluation import wording
from decero.evaluation.advice import best_of
from decero.evaluation.metrics import higher_is_better
from decero.evaluation.statistics import mean_and_sd
from decero.evaluation.verdict import Verdict
from decero.files import remove_folder
from decero.training.records import write_json


def best_run(plan: Plan, among: set[str] | None = None) -> PlannedRun | None:
    """Return the run whose model is to be shipped; None where a baseline is best, and in a cross-validation.

    among: only these contenders.
    """
    hidden, metric, means = incomparable(plan), plan.metric, {}
    for name in (name for name in plan.comparison.contenders if among is None or name in among):
        records = [record_in(run.folder) for run in plan.judged if (run.contender, run.budget) == (name, plan.last)]
        found = [record["metric"][metric] for record in records if metric in record["metric"]]
        if found and name not in hidden:
            means[name] = mean_and_sd(found)[0]
    best = best_of(means, higher_is_better(metric))
    return None if best is None else preferred_seed(plan, best)[0]


def preferred_seed(plan: Plan, contender: str) -> tuple[PlannedRun | None, bool]:
    """Return the run of a contender that scored best on validation, and whether validation decided.

    Without validation scores, and for one seed, it is the first run that succeeded; None for none, and for a baseline.
    """
    runs = [(run, record_in(run.folder)) for run in plan.candidates if run.contender == contender]
    good = [(run, record.get("validation") or {}) for run, record in runs if record["status"] == "ok"]
    if not good:
        return None, False
    metric = plan.task.validation_metric(plan.metric)
    if any(metric not in scores for _, scores in good):
        metric = "loss"  # e.g. no bits a byte, if the tokens do not give the text back
    found = [scores.get(metric) for _, scores in good]
    numbers = [score for score in found if isinstance(score, int | float) and math.isfinite(score)]
    if len(good) == 1 or len(numbers) < len(good):
        return good[0][0], False
    best = (max if higher_is_better(metric) else min)(range(len(numbers)), key=numbers.__getitem__)
    return good[best][0], True


def drop_others(plan: Plan) -> None:
    """Remove the models that cannot be shipped any more. Models that are kept for another reason stay."""
    done = {
        name
        for name in plan.comparison.contenders
        if all((run.folder / "result.json").is_file() for run in plan.candidates if run.contender == name)
    }
    kept = [
        best_run(plan, done),
        *(preferred_seed(plan, name)[0] for name in plan.comparison.contenders if name not in done),
    ]
    folders = {run.folder for run in kept if run is not None}
    for run in plan.candidates:
        if not run.keep_model and run.folder not in folders:
            remove_folder(run.folder / "model")


def push_lines(plan: Plan, verdict: Verdict) -> list[str]:
    """Say which model was kept and how to push it, or why there is none. [] for a plan that keeps none."""
    if not any(run.candidate for run in plan.runs):
        return ["A cross-validation keeps no model. Train one on all rows with the recipe, then push it."] * bool(
            plan.comparison.folds
        )
    run = best_run(plan)
    if run is None:
        failed = not any(record_in(each.folder)["status"] == "ok" for each in plan.runs if each.candidate)
        if failed:
            return ["Every run of a model failed, so no model was kept."]
        return ["The best contender is a simple baseline, which has no model to push."]
    if not (run.folder / "model").is_dir():
        return []
    where = wording.where(run.contender, run.budget, verdict.unit)
    by = "which validation prefers" if preferred_seed(plan, run.contender)[1] else "the first one"
    folder = shlex.quote(str(run.folder / "model"))
    return [f"The model of {where}, seed {run.seed}, {by}, was kept: decero push {folder} NAME/MODEL"]


def note_seeds(plan: Plan, verdict: Verdict) -> None:
    """Write into the record of the kept run what all its seeds gave, for its model card."""
    run = best_run(plan)
    if run is None or not any(each.candidate for each in plan.runs) or len(plan.comparison.seeds) == 1:
        return
    cell = verdict.cell(run.contender, run.budget)
    assert cell is not None
    by = "validation" if preferred_seed(plan, run.contender)[1] else "order"
    spread = {} if math.isnan(cell.sd) else {"sd": cell.sd}
    compared = {"seeds": sorted(cell.values), "by": by, "metric": plan.metric, "mean": cell.mean, **spread}
    write_json(run.folder / "result.json", record_in(run.folder) | {"compared": compared})
