"""Execute a plan: first every trial, then every run with the values that tuning chose."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
from accelerate import Accelerator
from accelerate.utils import gather_object

from decero.comparison.best_model import best_run, drop_others
from decero.comparison.plan import SPLITS, Plan, PlannedRun
from decero.comparison.run_records import in_one_line, problem_of, record_in
from decero.comparison.simple_baselines import score_baseline
from decero.comparison.tuning import failure, tuning_of
from decero.config.recorded_settings import same_settings
from decero.data.tokenizer import tokenizer_fingerprint
from decero.errors import UserError, WriteError
from decero.execution.unwrap import unwrap
from decero.files import remove_folder
from decero.tasks import TASKS, Task, TaskData, record_of
from decero.training.best_checkpoint import drop_last
from decero.training.loop import train
from decero.training.memory import reset_peak_memory
from decero.training.records import write_result
from decero.training.runs import Run, on_main

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def execute(plan: Plan, opened: Run) -> None:
    """Do the runs that are not done yet, and report each in a line. A failed run is recorded; the others continue."""
    for note in plan.task.corpus.notes:
        opened.print(note)
    taught_last = sorted(plan.runs, key=lambda run: run.teacher is not None)  # their teachers must be trained
    everything = (*plan.trials, *taught_last)
    for number, run in enumerate(everything, start=1):
        opened.print(f"[{number}/{len(everything)}] {run.name}: {do(plan, *_tuned(plan, run), opened)}")
        if plan.candidates:
            on_main(opened.accelerator, lambda: drop_others(plan))
    best = best_run(plan) if plan.candidates else None
    if best is not None and not (best.folder / "model").is_dir():  # dropped, before a failed run was tried again
        opened.print(
            f"{best.name}, again for its model: {do(plan, *_tuned(plan, replace(best, keep_model=True)), opened)}"
        )


def _tuned(plan: Plan, run: PlannedRun) -> tuple[PlannedRun, str | None]:
    """Return a run with the values that tuning chose for it, and why it cannot run, if it cannot."""
    if not plan.trials or run.trial is not None or run.baseline is not None:
        return run, None
    chosen = tuning_of(plan, run.contender, run.budget, run.fold).chosen
    return plan.with_values(run, chosen or {}), failure(plan, run) if chosen is None else None


def do(plan: Plan, run: PlannedRun, error: str | None, opened: Run) -> str:
    """Do one run, unless its record and its answers exist. Return a line about the result. error: why it cannot run.

    Writes result.json. A model also writes metrics.jsonl and config.yaml. All but trials write predictions or outputs.
    """
    accelerator = opened.accelerator
    record = record_in(run.folder)
    lacks_model = run.keep_model and not (run.folder / "model").is_dir()
    other = record.get("values", {}) != run.values  # tuning has chosen other values since
    if record["status"] != "ok" or lacks_model or other or problem_of(plan, run, record):
        reset_peak_memory()
        try:
            if error:
                raise UserError(error)
            record = {"status": "ok"} | _fit(plan, run, opened)
        except Exception as failed:  # a broken contender must not end the comparison
            if isinstance(failed, WriteError) or getattr(failed, "errno", None) in FULL:
                raise  # the fault of the machine
            if accelerator.num_processes > 1 and not isinstance(failed, UserError):
                raise  # the other processes may have no error, and would wait forever
            record = {"status": "failed", "error": in_one_line(failed), "metric": {}}
        _make(run.folder, accelerator)
        values = {"values": run.values} if run.values else {}
        record = write_result(run.folder, accelerator, record | values)
        if record["status"] == "ok" and (problem := problem_of(plan, run, record)):
            record |= {"status": "failed", "error": problem}
            record = write_result(run.folder, accelerator, record)
    if record["status"] == "ok" and run.baseline is None:
        drop_last(replace(opened, output=run.folder, training=run.config.training), record.get("best", {}))
    if record["status"] == "failed":
        return f"failed: {record['error']}"
    metrics = record["metric"]
    name = plan.metric if plan.metric in metrics else next(iter(metrics), "")
    if run.trial is not None:
        name = plan.task.validation_metric(plan.metric)
        name = name if name in metrics else "loss"
    split = "validation " if run.trial is not None else ""
    score = f"{split}{name} {metrics[name]:.4f}" if name in metrics else "no metric"
    return f"{score} in {record.get('wall_time_s', 0):.0f} s"


def _fit(plan: Plan, run: PlannedRun, opened: Run) -> dict[str, Any]:
    recipe, accelerator = plan.comparison.task, opened.accelerator
    _make(run.folder, accelerator)
    if run.baseline:
        folder = run.folder if accelerator.is_main_process else None
        baseline = run.baseline
        return _together(accelerator, lambda: score_baseline(baseline, recipe, run.config, folder, plan.split))
    if run.teacher and not (run.teacher / "model").is_dir():
        error = record_in(run.teacher).get("error", "its model is gone")
        raise UserError(f"its teacher {run.teacher} has no model: {error}")
    settings = run.config
    opened = replace(
        opened.with_settings(settings), output=run.folder, seed=settings.seed, resume=settings.resume, progress=False,
        tag=f"{run.name}/",
    )  # fmt: skip
    on_main(accelerator, lambda: _write_settings(run))
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one line per run is enough
    task = TASKS[recipe](settings)
    try:
        splits = SPLITS if task.splits else None
        data, model = _together(accelerator, lambda: (task.load_data(opened, splits), task.build_model()))
        result = train(opened, model, data.train, task.optimize(opened, model, data), task.evaluator(opened, data))
        if run.trial is None:
            task.calibrate(opened, result.model, data)
        if run.keep_model or run.candidate:  # before it is scored, because scoring may fail
            task.prepare_to_save(unwrap(result.model))
            opened.save_model(result.model, task.processor)
        if run.trial is not None:
            assert data.validation is not None
            metric = task.evaluate(opened, result.model, data.validation, data)
            record = {"seed": run.seed} | result.record() | {"metric": metric}
        else:
            held_out = data.validation if run.candidate and len(plan.comparison.seeds) > 1 else None
            validation = None if held_out is None else task.evaluate(opened, result.model, held_out, data)
            record = record_of(opened, task, result, scored(plan, task, data))
            record |= {"validation": validation} if validation else {}
            if task.tokenizer_needs:  # pictures have none
                record["tokenizer"] = tokenizer_fingerprint(task.tokenizer)
    finally:
        accelerator.free_memory()
        if not bars:
            datasets.enable_progress_bars()
    return record


def _together(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Return what `action` returns. If it fails in one process, raise UserError in all, so that none waits forever."""
    found, error = None, None
    try:
        found = action()
    except Exception as failed:
        if accelerator.num_processes == 1:
            raise
        error = failed if isinstance(failed, UserError) else UserError(in_one_line(failed))
    errors = [each for each in gather_object([error]) if each]
    if errors:
        raise errors[0]
    return found  # type: ignore[return-value]


def _write_settings(run: PlannedRun) -> None:
    """Write config.yaml. If its settings changed, delete the old checkpoints, so that they are not resumed."""
    path, settings = run.folder / "config.yaml", run.config.to_yaml()
    if path.is_file() and not same_settings(path, run.config):
        for name in ("checkpoints", "model"):
            remove_folder(run.folder / name)
        (run.folder / "metrics.jsonl").unlink(missing_ok=True)
    path.write_text(settings, encoding="utf-8")


def scored(plan: Plan, task: Task, data: TaskData) -> TaskData:
    """Return the data for the final scores. A pretraining task is scored on test, if there is a test split."""
    if task.scored_on == "validation" and plan.split == "test":
        return TaskData(data.train, {"validation": data.held_out["test"]})
    return data


def _make(folder: Path, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
