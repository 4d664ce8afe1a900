"""Plan a comparison: contenders x label budgets x seeds, and the tuning trials before them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from decero.comparison.contender_folders import folder_names
from decero.comparison.grid import points
from decero.config.comparison import Compare
from decero.config.finetune_images import ImageRun
from decero.config.rivals import rivals_of
from decero.config.training_run import TrainingRun
from decero.errors import UserError, did_you_mean
from decero.tasks import TASKS, Task

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    baseline: name of a simple baseline, for a contender without a model. values: the settings of a trial, or those that
    tuning chose. trial: the number of a tuning trial. fold: the fold that is tested, in a cross-validation. teacher:
    the folder of the run that trains its teacher. candidate: whether its model may be the one that is kept.
    """

    contender: str
    budget: int | None
    seed: int
    folder: Path
    config: TrainingRun | ImageRun
    name: str
    baseline: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    trial: int | None = None
    keep_model: bool = False
    fold: int | None = None
    teacher: Path | None = None
    candidate: bool = False


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison. task: the task with the shared settings. split: the split of the final scores.

    runs: what is trained. In a cross-validation, `judged` are other folders: one for all folds of a seed.
    """

    comparison: Compare
    task: Task
    metric: str
    split: str
    trials: list[PlannedRun]
    runs: list[PlannedRun]

    @property
    def judged(self) -> list[PlannedRun]:
        """The runs that are compared: one for each contender, label budget and seed."""
        whole = [replace(run, folder=run.folder.parent) for run in self.runs if run.fold == 0]
        return whole if self.comparison.folds else self.runs

    @property
    def candidates(self) -> list[PlannedRun]:
        """The runs of which one model is kept in the end."""
        return [run for run in self.runs if run.candidate]

    @property
    def last(self) -> int | None:
        """The largest label budget; None: all labels."""
        return largest(self.comparison.label_budgets)

    @property
    def size(self) -> str:
        return f"{len(self.trials)} trials and {len(self.runs)} runs" if self.trials else f"{len(self.runs)} runs"

    def with_values(self, run: PlannedRun, values: dict[str, Any]) -> PlannedRun:
        """Return a run with the values that tuning chose."""
        config = configure(
            self.comparison, type(self.task), run.contender, run.budget, run.seed, run.folder, values, run.fold
        )
        return replace(run, config=config, values=values)


def make_plan(comparison: Compare, keep_best: bool = False) -> Plan:
    """Resolve and check the settings of every run, before the first one starts.

    keep_best: keep the model that the verdict ships, at the largest label budget.

    Raises UserError for an unknown task or metric, invalid settings of a contender, a baseline of another task, a
    budget larger than the data, and a missing split.
    """
    task_class = _task_of(comparison)
    task = task_class(configure(comparison, task_class, None, None, comparison.seed, comparison.folder))
    metric = _metric_of(comparison, task)
    for name, contender in comparison.contenders.items():
        if contender.baseline_name and contender.baseline_name not in task.baselines:
            known = f"; known: {', '.join(task.baselines)}" if task.baselines else ", which has none"
            known = did_you_mean(contender.baseline_name, task.baselines) or known
            raise UserError(f"contenders.{name}: unknown baseline {contender.baseline_name} of {task.recipe}{known}")
    split = _check_data(comparison, task)
    trials: list[PlannedRun] = []
    runs: list[PlannedRun] = []
    folders = folder_names(comparison.contenders)
    folds = range(comparison.folds) if comparison.folds else [None]
    teachers = {each.teacher for each in comparison.contenders.values()}
    for budget in comparison.label_budgets:
        for name, contender in comparison.contenders.items():
            parent = folder_of(comparison, name, budget)
            shown_name = name if name.isprintable() and 0 < len(name) <= 80 else folders[name]
            where = f"{shown_name}, {budget or 'all'} {task.budget_unit}" if task.budget_unit else shown_name
            grid = [] if contender.baseline_name else points(comparison, name)
            for number, values, fold in ((*trial, fold) for trial in enumerate(grid) for fold in folds):
                folder, seed = _folder(parent / f"tune-{number}", fold), comparison.seed
                config = configure(comparison, task_class, name, budget, seed, folder, values, fold)
                shown = ", ".join(f"{key} {value}" for key, value in values.items())
                run_name = f"{where}{_part(fold)}, trial {number}: {shown}"
                trials.append(
                    PlannedRun(name, budget, seed, folder, config, run_name, values=values, trial=number, fold=fold)
                )
            for seed, fold in itertools.product(comparison.seeds, folds):
                folder = _folder(parent / f"seed-{seed}", fold)
                config = configure(comparison, task_class, name, budget, seed, folder, fold=fold)
                run_name = f"{where}, seed {seed}{_part(fold)}"
                keep = (comparison.keep_models and contender.baseline_name is None) or name in teachers
                candidate = keep_best and contender.model is not None and fold is None
                candidate = candidate and budget == largest(comparison.label_budgets)
                teacher = contender.teacher and folder_of(comparison, contender.teacher, budget) / f"seed-{seed}"
                runs.append(
                    PlannedRun(
                        name, budget, seed, folder, config, run_name, contender.baseline_name, keep_model=keep,
                        fold=fold, teacher=_folder(teacher, fold) if teacher else None, candidate=candidate,
                    )
                )  # fmt: skip
    return Plan(comparison, task, metric, split, trials, runs)


def largest(budgets: Sequence[int | None]) -> int | None:
    """Return the largest label budget; None, which is all labels, exceeds every number."""
    return None if None in budgets else max(budgets)  # type: ignore[type-var]


def _folder(folder: Path, fold: int | None) -> Path:
    return folder if fold is None else folder / f"fold-{fold}"


def _part(fold: int | None) -> str:
    return "" if fold is None else f", fold {fold}"


def folder_of(comparison: Compare, name: str, budget: int | None) -> Path:
    """Return the folder of the runs of a contender at a label budget."""
    return comparison.folder / "runs" / folder_names(comparison.contenders)[name] / f"labels-{budget or 'all'}"


def configure(
    comparison: Compare, task: type[Task], name: str | None, budget: int | None, seed: int, folder: Path,
    values: dict[str, Any] | None = None, fold: int | None = None,
) -> TrainingRun | ImageRun:  # fmt: skip
    """Return the settings of one run, as the task's own recipe takes them. name: None for the shared settings alone.

    The folds are those of the comparison's seed, for all runs. So what was tuned in a fold never saw its test rows.

    Raises UserError for an invalid setting.
    """
    contender = comparison.contenders[name] if name is not None else None
    training = comparison.training.model_dump(exclude_unset=True)
    training.setdefault("save_steps", None)  # a short run is repeated, not resumed
    sections = {"optim": comparison.optim.model_dump(exclude_unset=True), "training": training}
    for key, value in ((contender.own if contender else {}) | (values or {})).items():
        section, _, setting = key.partition(".")
        for rival in rivals_of(setting):  # steps of its own replace shared epochs
            sections[section].pop(rival, None)
        sections[section][setting] = value
    settings: dict[str, Any] = {"output": str(folder), "seed": seed, "data": dict(comparison.data), **sections}
    settings["hub"] = comparison.hub.model_dump(include={"license", "language"})  # for the card of a kept model
    settings["model"] = {"config": "none"}  # a baseline has no model; this one is never built
    if contender:
        if "tokenizer" in task.Config.model_fields or contender.tokenizer.name_or_path:
            settings["tokenizer"] = contender.tokenizer.model_dump()
        place = comparison.seeds.index(seed) if seed in comparison.seeds else 0
        settings["model"] = contender.model.of_run(place) if contender.model else settings["model"]
        if contender.peft is not None:
            settings["peft"] = contender.peft.model_dump()
    if task.budget_unit:
        settings["data"]["max_train_rows"] = budget
    if comparison.folds:
        settings["data"]["fold"] = {"number": fold or 0, "of": comparison.folds, "seed": comparison.seed}
    settings |= {part: dict(given) for part in ("objective", "generation") if (given := getattr(comparison, part))}
    if contender and contender.distill:
        distill = dict(contender.distill)
        if contender.teacher:
            taught = _folder(folder_of(comparison, contender.teacher, budget) / f"seed-{seed}", fold)
            distill["teacher"] = str(taught / "model")
        settings["objective"] = settings.get("objective", {}) | {"distill": distill}
    run = task.Config.parse(settings, f"contenders.{name}" if name is not None else f"task {task.recipe}")
    run.call.resume = comparison.resume  # from its last checkpoint, if it saves any
    run.call.dry_run = comparison.dry_run
    return run


def own_settings(comparison: Compare) -> dict[str, dict[str, Any]]:
    """Return contender -> its settings of `optim` and `training` that differ from the shared ones."""
    shared = {name: getattr(comparison, name).model_dump() for name in ("optim", "training")}
    found: dict[str, dict[str, Any]] = {}
    for name, contender in comparison.contenders.items():
        for key, value in contender.own.items():
            section, _, setting = key.partition(".")
            if shared[section].get(setting) != value:
                found.setdefault(name, {})[key] = value
    return found


def notes_on(comparison: Compare) -> list[str]:
    """Return what a reader of the results must know of the plan."""
    notes = [note for note in [by_hand(comparison)] if note]
    if comparison.folds:
        notes.append(
            f"Cross-validation: each row was scored once a seed, in one of {comparison.folds} folds, by a model that "
            "was not trained on it. The training sets of the folds overlap, and no interval can measure what that does "
            "(Bengio & Grandvalet 2004): a narrow win needs fresh test rows."
        )
    return notes


def by_hand(comparison: Compare) -> str | None:
    """Name the contenders with settings of their own that were not tuned, in one sentence; None if there are none."""
    found = own_settings(comparison)
    if not found:
        return None
    names, keys = list(found), list(dict.fromkeys(key for keys in found.values() for key in keys))
    who = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    have = "have settings of their own" if len(names) > 1 else "has settings of its own"
    effort = "were set by hand, not tuned" if len(keys) > 1 else "was set by hand, not tuned"
    return f"{who} {have}: {', '.join(keys)}, which {effort} with equal effort."


def _task_of(comparison: Compare) -> type[Task]:
    name = comparison.task
    if name not in TASKS:
        near = did_you_mean(name, TASKS) or f"; there are {', '.join(TASKS)}"
        raise UserError(f"task: unknown task {name}{near}")
    if not TASKS[name].budget_unit and comparison.label_budgets != [None]:
        raise UserError(f"label_budgets: {name} uses text without labels; remove label_budgets, or set data.max_rows")
    if comparison.folds and not TASKS[name].has_folds:
        able = ", ".join(each for each, task in TASKS.items() if task.has_folds)
        raise UserError(f"folds: {name} has no cross-validation, only {able}; remove it, and give a test split")
    return TASKS[name]


def _metric_of(comparison: Compare, task: Task) -> str:
    """Return the metric that decides."""
    wanted, known = comparison.metric, task.metrics
    if wanted is not None and wanted not in known:
        kind = getattr(task, "problem_type", task.recipe)
        near = did_you_mean(wanted, known) or f"; there are {', '.join(known)}"
        raise UserError(f"metric: {wanted} is not a metric of {kind}{near}")
    return wanted or known[0]


def _check_data(comparison: Compare, task: Task) -> str:
    """Return the split that is scored. Reads the corpus once per budget."""
    if comparison.data.get("streaming") and not task.budget_unit:
        raise UserError("data.streaming: a comparison needs the whole corpus; set data.max_rows instead")
    for budget in comparison.label_budgets:
        config = configure(comparison, type(task), None, budget, comparison.seed, comparison.folder)
        try:
            corpus = type(task)(config).read_corpus()
        except UserError as error:
            raise UserError(str(error).replace("data.max_train_rows: ", "label_budgets: ")) from None
        parts = corpus.splits["train"]
        if task.budget_unit == "pairs" and budget is not None:
            for part, rows in parts.items():
                if len(rows) < budget:
                    raise UserError(f"label_budgets: {budget} exceeds the {len(rows)} training pairs of {part}")
    missing = [part for part in parts if part not in corpus.splits.get("test", {})]
    if task.scored_on == "test" and missing:
        named = f" of {missing[0]}" if missing[0] else ""
        mend = "give data.files.test or data.test_fraction"
        mend = f"give data.tasks.{missing[0]} files.test or test_fraction" if missing[0] else mend
        raise UserError(f"a comparison needs a test split{named}: {mend}")
    if comparison.tune:
        for split, why in (("validation", "it scores the trials"), ("test", "the trials have seen validation")):
            if split not in corpus.splits:
                raise UserError(
                    f"tune needs a {split} split, because {why}: give data.files.{split} or {split}_fraction"
                )
    if "test" not in corpus.splits and "validation" not in corpus.splits:
        raise UserError("a comparison needs a test or validation split: give data.files.test or data.test_fraction")
    return "test" if "test" in corpus.splits else "validation"
