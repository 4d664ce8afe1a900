"""Run the training loop: steps, gradients, checkpoints. All it knows of the task is an `Objective`."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from decero.data.order import RowIndex, Rows, seed_sequence
from decero.data.stream import Stream
from decero.errors import UserError
from decero.execution.objective import Objective
from decero.execution.optimize import compile_layers
from decero.files import remove_folder
from decero.training.best_checkpoint import Selection, room_for_weights
from decero.training.checkpoint import load_checkpoint, save_checkpoint, to_resume
from decero.training.data_loader import step_loader
from decero.training.gradient import backward, bad_gradient, check_weights, freeze_unreached
from decero.training.memory import release_freed_memory
from decero.training.metrics_log import MetricsLog
from decero.training.optimizer import averaged, build_optimizer, learning_rate_at, on_average
from decero.training.records import TrainResult, check_rows, sample_of
from decero.training.runs import Run
from decero.training.sharding import Sharded, full, shard
from decero.training.signals import Interruption


def train(
    run: Run,
    model: PreTrainedModel,
    dataset: Dataset | Stream,
    objective: Objective,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> TrainResult:
    """Train `model` on `dataset`. A step is always an optimizer step.

    The gradient of a step is that of the mean loss over the scored items of the whole global batch. It does not depend
    on how the batch is split into micro-batches and over processes. evaluate: model -> metrics, called as
    `training.eval_strategy` says. In a sharded run it gets a `Sharded` model, to be gathered with `evaluating`. The
    returned model is never sharded. With `--eval-only` it is `model` as it is.

    Raises UserError before the update when a loss or gradient is not finite, with the step, the examples and the layer.
    """
    accelerator, training, optim, output, seed = run.accelerator, run.training, run.optim, run.output, run.seed
    if run.eval_only:
        return TrainResult(accelerator.prepare_model(model.eval(), evaluation_mode=True))
    release_freed_memory()  # pieces that loading and trying left are too small for a step, and would add to its peak
    loader = step_loader(accelerator, dataset, objective, training, seed)
    last, steps_per_epoch = loader.last, loader.steps_per_epoch
    if training.metric_for_best_model and evaluate is None:
        raise UserError(
            "training.metric_for_best_model needs a validation split; set data.validation_fraction or remove it"
        )
    torch.manual_seed(seed_sequence(seed, accelerator.process_index))  # dropout
    model.to(accelerator.device).train()  # type: ignore[arg-type]
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prepared: Any = model
    if run.sharded:
        model = shard(accelerator, model)  # type: ignore[assignment]
    if frozen := freeze_unreached(accelerator, model, objective, Rows(dataset).__getitems__([RowIndex(0, 0)])[0]):
        accelerator.print(f"not used by this objective, so not trained: {', '.join(frozen)}")
    if training.compile:
        accelerator.print(compile_layers(model))
    optimizer = accelerator.prepare(build_optimizer(model, optim))
    learning_rate = learning_rate_at(optimizer, optim, last)
    evaluate = evaluate and on_average(optimizer, evaluate)
    prepared = accelerator.prepare_model(prepared, evaluation_mode=True)  # no DDP: `backward` sums the gradients
    if not isinstance(model, Sharded):
        model = prepared
        broadcast([parameter.data for parameter in model.parameters()])

    result, first, state, checkpoints = TrainResult(model), 0, dict[str, Any](), output / "checkpoints"
    running, selection = {"loss": 0.0, "steps": 0}, Selection(training, checkpoints)
    trained_rows = sample_of(dataset)
    if newest := to_resume(checkpoints, accelerator) if run.resume else None:
        state = load_checkpoint(newest, accelerator, model, optimizer)
        first, running, result.tokens = state["step"], state["running"], state["tokens"]
        check_rows(state.get("rows"), trained_rows, output)
        selection.best, selection.stale = state["best"], state.get("stale", 0)
        selection.forget_damaged(accelerator)
        result.wall_time_s, result.save_time_s = state["wall_time_s"], state.get("save_time_s", 0.0)
        loader.restore(first, state.get("stream"))
        loader.limit(state.get("micro_batch", loader.split.limit))
        check_weights(accelerator, model, first)
        accelerator.print(f"resuming {output} at step {first} of {last}")
    elif accelerator.is_main_process:
        remove_folder(checkpoints)  # of an earlier attempt that is not resumed
    if evaluate and not newest:
        selection.check_name(evaluate, model)
    log = MetricsLog(accelerator, output, first, run.tag, training.logging_steps, state.get("unlogged", []))
    result.history = log.rows
    shown: Any = {"total": last, "initial": first, "unit": "step", "dynamic_ncols": True, "desc": output.name}
    shown |= {"disable": not (run.is_main and run.progress), "mininterval": 0.5 if sys.stderr.isatty() else 15}

    def save(step: int, resumable: bool, unevaluated: bool = False) -> None:
        check_weights(accelerator, model, step)
        state = {"step": step, "running": running, "tokens": result.tokens, "best": selection.best}
        state |= {"stale": selection.stale, "wall_time_s": result.wall_time_s, "stream": loader.state()}
        state |= {"micro_batch": loader.split.limit, "save_time_s": result.save_time_s}
        state |= {"unlogged": log.unwritten, "unevaluated": unevaluated, "rows": trained_rows}
        save_started = time.perf_counter()
        with averaged(optimizer):
            save_checkpoint(checkpoints, accelerator, model, optimizer if resumable else None, state)
        if accelerator.is_main_process:
            selection.prune(step)
        result.save_time_s += time.perf_counter() - save_started

    wall_time_before, started = result.wall_time_s, time.perf_counter()
    tokens_before, since = result.tokens, started
    with closing(loader), Interruption(accelerator) as interruption, room_for_weights(run, model), tqdm(**shown) as bar:
        if state.get("unevaluated"):
            selection.evaluate(evaluate, model, first, log, bar)
        for step in range(first, first if selection.out_of_patience else last):
            loss, tokens, indices = backward(accelerator, model, objective, loader, step)
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            total_norm = full(nn.utils.get_total_norm(gradients))
            norm = float(total_norm)
            if not math.isfinite(norm):
                check_weights(accelerator, model, step)
                raise UserError(bad_gradient(accelerator.unwrap_model(model), indices, step))
            if optim.max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(model.parameters(), optim.max_grad_norm, total_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            optimizer.step()
            optimizer.zero_grad()

            done = result.step = step + 1
            result.tokens += tokens
            running = {"loss": running["loss"] + loss, "steps": running["steps"] + 1}
            if done % training.logging_steps == 0 or done == last:
                now = time.perf_counter()
                rate, waited = (result.tokens - tokens_before) / (now - since), loader.waited / (now - since)
                since, tokens_before, loader.waited = now, result.tokens, 0.0
                mean, running = running["loss"] / running["steps"], {"loss": 0.0, "steps": 0}
                log.write(
                    step=done, epoch=loader.epoch(done), loss=mean, learning_rate=learning_rate(step),
                    grad_norm=norm, tokens=result.tokens, tokens_per_s=round(rate), data_wait=round(waited, 4),
                )  # fmt: skip
                bar.set_postfix_str(f"loss {mean:.3f}, {rate:,.0f} {objective.unit}/s", refresh=False)
            bar.update()

            result.wall_time_s = wall_time_before + time.perf_counter() - started
            due = evaluate is not None and selection.due(done, last, steps_per_epoch)
            planned = training.save_steps is not None and (done % training.save_steps == 0 or done == last)
            if kept := done == last and (due or not planned):  # before what may fail: evaluation, scoring, saving
                save(done, planned, unevaluated=due)
            new_best = due and selection.evaluate(evaluate, model, done, log, bar)
            if due:
                since, tokens_before, loader.waited = time.perf_counter(), result.tokens, 0.0
            signal = interruption.anywhere()
            resumable = bool(new_best or planned or signal)
            if resumable or (selection.out_of_patience and not kept):
                save(done, resumable)
            if signal and done < last:
                interruption.end(signal, done, last)
            if selection.out_of_patience:
                accelerator.print(f"step {done}: no improvement for {selection.stale} evaluations; stopping early")
                break
    log.finish()
    result.step, result.best = max(first, result.step), selection.best
    result.wall_time_s = wall_time_before + time.perf_counter() - started
    optimizer.eval()  # the mean, if schedule-free
    selection.load(accelerator.unwrap_model(model))
    result.model = model.gather() if isinstance(model, Sharded) else model
    release_freed_memory()  # so would those of a step to the peak of scoring
    return result
