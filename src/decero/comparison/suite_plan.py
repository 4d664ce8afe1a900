"""Plan a suite: a comparison for each task, with the same contenders; collect them, and average over the tasks."""

from pathlib import Path
from typing import Any, NamedTuple

from decero.comparison.collect import facts, failures, verdict_of
from decero.comparison.contender_folders import folder_names
from decero.comparison.plan import Plan, make_plan
from decero.comparison.run_records import record_in
from decero.config.comparison import Compare
from decero.config.rivals import rivals_of
from decero.config.suite import EvaluateSuite, SuiteTask
from decero.config.yaml_files import read_yaml
from decero.errors import UserError, did_you_mean
from decero.evaluation import wording
from decero.evaluation.corpus_tests import Score, ratio
from decero.evaluation.metrics import higher_is_better
from decero.evaluation.report import write_report
from decero.evaluation.suite_average import Resampled, TaskRuns
from decero.evaluation.suite_report import SuiteVerdict, summarize
from decero.evaluation.verdict import ScoredRun, Verdict
from decero.tasks import TASKS, Task

FIRST = "first"  # a task's first baseline
SECTIONS = ("data", "objective", "generation")
RANKS = ("spearman",)  # metrics that cannot be computed from sums over examples


class JudgedTask(NamedTuple):
    """The verdict of one task, its runs, and the metric of summed rows; None without a successful run."""

    verdict: Verdict
    runs: list[ScoredRun]
    score: Score | None


def make_suite(suite: EvaluateSuite) -> tuple[dict[str, Plan], list[str]]:
    """Return task -> its plan, and a line for each contender that a task leaves out.

    Raises UserError as `make_plan` for any task, before the first run, and for a metric that cannot be averaged.
    """
    plans: dict[str, Plan] = {}
    notes: list[str] = []
    if len(suite.seeds) == 1:
        notes.append("one seed: the intervals do not include the luck of training")
    folders = folder_names(suite.tasks)
    for name, entry in suite.tasks.items():
        try:
            comparison, left_out = _comparison(suite, entry, name, Path(suite.output) / "tasks" / folders[name])
            plans[name] = make_plan(comparison)
        except UserError as error:
            raise UserError(f"tasks.{name}: {error}") from None
        notes += [f"{name}: without {contender}, because it has no such baseline" for contender in left_out]
        metric = plans[name].metric
        if not higher_is_better(metric) or wording.base(metric) in RANKS:
            why = (
                "cannot be computed from sums over examples" if wording.base(metric) in RANKS else "is better when low"
            )
            others = [m for m in plans[name].task.metrics if higher_is_better(m) and wording.base(m) not in RANKS]
            mend = f"set it to {' or '.join(others)}" if others else "leave out this task"
            raise UserError(f"tasks.{name}.metric: {metric} {why}, so it has no place in an average; {mend}")
    return plans, notes


def _comparison(suite: EvaluateSuite, entry: SuiteTask, name: str, folder: Path) -> tuple[Compare, list[str]]:
    """Return the comparison of one task, and the names of the contenders that it leaves out."""
    task = _task_of(entry)
    found: dict[str, Any] = {section: dict(getattr(entry, section)) for section in SECTIONS}
    if entry.config is not None:
        file = read_yaml(entry.config)
        for section in SECTIONS:
            theirs = dict(file.get(section) or {})
            theirs.pop("max_train_rows", None)
            for key in found[section]:
                for rival in rivals_of(key):
                    theirs.pop(rival, None)
            found[section] = theirs | found[section]
    for section in ("optim", "training"):
        shared = getattr(suite, section).model_dump(exclude_unset=True)
        for key in getattr(entry, section):
            for rival in rivals_of(key):
                shared.pop(rival, None)
        found[section] = shared | getattr(entry, section)
    contenders, left_out = {}, []
    for contender, settings in suite.contenders.items():
        baseline = settings.baseline_name
        if baseline == FIRST:
            baseline = next(iter(task.baselines), None)
        if settings.baseline_name and baseline not in task.baselines:
            known = {each for other in TASKS.values() for each in other.baselines}
            if settings.baseline_name not in (*known, FIRST):
                near = did_you_mean(settings.baseline_name, (*known, FIRST)) or f"; known: {', '.join(sorted(known))}"
                raise UserError(f"contenders.{contender}: unknown baseline {settings.baseline_name}{near}")
            left_out.append(contender)
            continue
        contenders[contender] = settings.model_dump() | ({"baseline": baseline, "tfidf": False} if baseline else {})
    given = {
        "output": str(folder), "title": f"{suite.title}: {name}", "task": entry.recipe, "reference": suite.reference,
        "contenders": contenders, "seeds": suite.seeds, "metric": entry.metric, "seed": suite.seed,
        "label_budgets": entry.label_budgets or suite.label_budgets, "tracking": suite.tracking.model_dump(),
    }  # fmt: skip
    comparison = Compare.parse(given | found, "settings")
    comparison.call.resume = suite.resume
    return comparison, left_out


def _task_of(entry: SuiteTask) -> type[Task]:
    if entry.recipe not in TASKS:
        near = did_you_mean(entry.recipe, TASKS) or f"; there are {', '.join(TASKS)}"
        raise UserError(f"recipe: unknown recipe {entry.recipe}{near}")
    return TASKS[entry.recipe]


def judge_task(plan: Plan, write: bool) -> JudgedTask:
    """Judge the runs of a task; write its own report, if `write`."""
    verdict, runs = verdict_of(plan)
    if write:
        known = facts(plan)
        write_report(Path(plan.comparison.output), plan.comparison.title, verdict, runs, facts=known,
                     notes=failures(runs))  # fmt: skip
    score: Score | None = None
    for run in plan.runs:
        record = record_in(run.folder)
        if record["status"] == "ok" and plan.metric in record["metric"]:
            score = plan.task.example_statistics(run.folder, plan.metric).score_of_sum
            break
    return JudgedTask(verdict, runs, score)


def judge_suite(suite: EvaluateSuite, judged: dict[str, JudgedTask]) -> SuiteVerdict:
    """Average the tasks at each label budget. Raises UserError when the reference has no run in some task."""
    resampled = []
    for place in range(len(suite.label_budgets)):
        tasks = []
        for name, (verdict, runs, score) in judged.items():
            budget = verdict.budgets[place]
            own = [run for run in runs if run.budget == budget and run.status == "ok" and run.scores is not None]
            if not any(run.contender == suite.reference for run in own):
                problem = "; ".join(failures(runs)) or "it has no comparable runs"
                raise UserError(
                    f"tasks.{name}: the reference {suite.reference} has no score ({problem}); fix it and start the "
                    "same command again with --resume, which runs only what failed"
                )
            rows: dict[str, dict[int, Any]] = {}
            started: dict[str, dict[int, str | None]] = {}
            for run in own:
                rows.setdefault(run.contender, {})[run.seed] = run.scores
                started.setdefault(run.contender, {})[run.seed] = run.pretraining
            scale = 1.0 if wording.base(verdict.metric) in wording.HUNDRED else 100.0
            tasks.append(TaskRuns(name, rows, score or ratio, scale, started))
        resampled.append(Resampled(tasks, suite.seed))
    return summarize(
        {name: each.verdict for name, each in judged.items()}, resampled, suite.reference, list(suite.contenders)
    )
