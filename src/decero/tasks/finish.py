"""The end of a run: save the model, score it, write the record, push."""

import math
import sys
from typing import Any

from decero.errors import UserError
from decero.execution.unwrap import unwrap
from decero.hub.publish import push
from decero.inference.generation_check import check_generation
from decero.tasks.base import Task, TaskData
from decero.training.best_checkpoint import drop_last
from decero.training.records import TrainResult, finished, write_pushed, write_result
from decero.training.runs import Run, pushed_to
from decero.training.sharding import unsharded


def record_of(run: Run, task: Task, result: TrainResult, data: TaskData) -> dict[str, Any]:
    """What goes into result.json: the final scores, and the cost of the run. Raises UserError for NaN and infinity."""
    metric, facts = task.score(run, result.model, data)
    if bad := [f"{name} {value}" for name, value in metric.items() if not math.isfinite(value)]:
        raise UserError(
            f"{run.output}: the scores are not finite ({bad[0]}): the run diverged; lower optim.learning_rate"
        )
    scored = {"scored": run.config.model.name_or_path} if run.eval_only else {}
    costs = result.record() | task.own_costs(run, result, data)
    return {"seed": run.seed} | scored | facts | costs | {"metric": metric}


def finish(run: Run, task: Task, result: TrainResult, data: TaskData) -> None:
    """Save the model to model/, score it, write result.json, print the scores, and push where the settings ask for it.

    The model is saved before it is scored, because scoring may fail. The record is written before the push, because
    the push sends it. With `--eval-only` there is no new model to save.
    """
    task.calibrate(run, result.model, data)
    if run.eval_only:
        return show(run, task, write_result(run.output, run.accelerator, record_of(run, task, result, data)))
    task.prepare_to_save(unwrap(result.model))
    task.save(run, result.model)
    record = record_of(run, task, result, data)
    write_result(run.output, run.accelerator, record)
    drop_last(run, result.best)
    if task.generates:
        warn_of_generation(run, result.model)
    show(run, task, record)
    push_once(run)


def show(run: Run, task: Task, record: dict[str, Any]) -> None:
    """Print the scores, and behind those of a new model what to do with it."""
    split = f"{record['split']} " if "split" in record else ""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in record["metric"].items())
    figures = figures or "no scores, because there is no validation split"
    scored = run.config.model.name_or_path if run.eval_only else run.output / "model"
    run.print(f"{scored}: {split}{figures}{task.remark}", *([] if run.eval_only else next_steps(task, run)))


def next_steps(task: Task, run: Run) -> list[str]:
    """Say how to use the trained model, and how to publish it."""
    folder = run.output / "model"
    steps = task.usage(folder)
    steps += [f"decero merge {run.output} OUT"] if getattr(run.config, "peft", None) else []
    steps += [] if run.config.hub.repo_id else [f"decero push {folder} NAME/MODEL"]
    return [f"next: {'; '.join(steps)}"] if steps else []


def is_finished(run: Run) -> bool:
    """Tell whether a finished run is resumed. If so, print its scores, and push what was not pushed."""
    record = finished(run.config)
    if record is None:
        return False
    if not (run.output / "model").is_dir() and "scored" not in record:
        raise UserError(f"{run.output}/model is gone; delete result.json, then --resume writes both again")
    run.print(f"{run.config.output} is finished: {record['metric']}")
    if not run.config.dry_run and "scored" not in record:
        drop_last(run, record.get("best", {}))
        push_once(run)
    return True


def push_once(run: Run) -> None:
    """Push model/ to `hub.repo_id`, if one is set and the model is not there yet.

    Raises UserError when the push fails; --resume then tries again.
    """
    hub = run.config.hub
    if not hub.repo_id or not run.is_main or pushed_to(run.output) == hub.repo_id:
        return
    try:
        push(run.output / "model", hub.repo_id, hub.private, license=hub.license, languages=hub.language)
    except UserError as error:
        raise UserError(f"{error}; --resume pushes it again") from None
    write_pushed(run.output, hub.repo_id)


def warn_of_generation(run: Run, model: Any) -> None:
    """Warn on standard error when the model does not generate as it should. All processes must call it."""
    with unsharded(run.accelerator, model) as bare:
        problem = check_generation(bare, autocast=run.training.mixed_precision != "no")
    if problem and run.is_main:
        sys.stderr.write(f"warning: {problem}\n")
