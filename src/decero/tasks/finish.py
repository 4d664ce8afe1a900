"""The end of a run: score the model, save it, write the record, push."""

import sys
from typing import Any

from decero.execution.unwrap import unwrap
from decero.hub.publish import push, save
from decero.inference.generation_check import check_generation
from decero.tasks.base import Task, TaskData
from decero.training.loop import TrainResult
from decero.training.records import write_result
from decero.training.runs import Run
from decero.training.sharding import unsharded


def record_of(run: Run, task: Task, result: TrainResult, data: TaskData) -> dict[str, Any]:
    """What goes into result.json: the final scores, and the cost of the run."""
    metric, facts = task.score(run, result.model, data)
    return {"seed": run.seed} | facts | result.record() | {"metric": metric}


def finish(run: Run, task: Task, result: TrainResult, data: TaskData) -> None:
    """Score the model, save it to model/, write result.json, push where the settings ask for it, and print the scores.

    The record is written before the push, because the push sends it.
    """
    record = record_of(run, task, result, data)
    folder, hub = run.output / "model", run.config.hub
    task.prepare_to_save(unwrap(result.model))
    save(run.accelerator, result.model, task.tokenizer, folder)
    write_result(run.output, run.accelerator, record)
    if task.generates:
        warn_of_generation(run, result.model)
    if hub.repo_id and run.is_main:
        push(folder, hub.repo_id, hub.private)
    split = f"{record['split']} " if "split" in record else ""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in record["metric"].items())
    run.print(f"{folder}: {split}{figures}{task.remark}")


def warn_of_generation(run: Run, model: Any) -> None:
    """Warn on standard error when the model does not generate as it should. All processes must call it."""
    with unsharded(run.accelerator, model) as bare:
        problem = check_generation(bare, autocast=run.training.mixed_precision != "no")
    if problem and run.is_main:
        sys.stderr.write(f"warning: {problem}\n")
