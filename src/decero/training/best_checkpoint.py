"""Select the final weights (last, best, or mean of the last few) and decide when to stop early."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn

from decero.config.sections import TrainingSection
from decero.errors import UserError
from decero.execution.adapters import trained_tensors
from decero.training.checkpoint import checkpoint_of, damage, load_weights, prune, release_room, reserve, steps_in
from decero.training.gradient import check_weights
from decero.training.metrics_log import MetricsLog
from decero.training.runs import Run

LOWER_IS_BETTER = ("loss", "perplexity", "mse", "mae", "bits_per_byte")


@dataclass
class Selection:
    """Track evaluations. best: metrics and step of the best one. stale: the number of evaluations since it."""

    training: TrainingSection
    folder: Path
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0

    def due(self, done: int, last: int, steps_per_epoch: float) -> bool:
        """Return whether to evaluate after `done` steps of `last`."""
        strategy = self.training.eval_strategy
        every = {"steps": self.training.eval_steps, "epoch": steps_per_epoch}.get(strategy)
        return every is not None and (done % every == 0 or done == last)

    def evaluate(self, evaluate: Any, model: nn.Module, done: int, log: MetricsLog, bar: Any) -> bool:
        """Evaluate and log the model after `done` steps; return whether it is the best so far."""
        check_weights(log.accelerator, model, done)
        metrics = {f"eval_{name}": value for name, value in evaluate(model).items()}
        log.write(step=done, **metrics)
        if not bar.disable:
            bar.write(f"step {done}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        return self.is_better(metrics, done)

    def forget_damaged(self, accelerator: Accelerator) -> None:
        """Forget the best evaluation of a resumed run, and say so, if its checkpoint is damaged.

        The best of the evaluations from here on is then taken; a run that had stopped early trains no further. All
        processes must call it.
        """
        if not self.best:
            return
        path, found = checkpoint_of(self.folder, int(self.best["step"])), [""]
        if accelerator.is_main_process:
            found = [damage(path) or ""]
        broadcast_object_list(found)
        if found[0]:
            accelerator.print(f"{path}: the best weights are lost: {found[0]}; the best from here on is taken")
            self.best, self.stale = {}, self.stale if self.out_of_patience else 0

    def check_name(self, evaluate: Callable[..., dict[str, float]], model: nn.Module) -> None:
        """Raise UserError for an unknown metric before the first step: evaluate two of the `rows` of `evaluate`.

        Data of several sets have metrics that two rows lack; so before it refuses a name, it evaluates all rows.
        """
        rows = getattr(signature(evaluate).parameters.get("rows"), "default", None)
        if self.training.metric_for_best_model is None or not isinstance(rows, Dataset):
            return
        for part in (rows.select(range(min(2, len(rows)))), rows):
            metrics = {f"eval_{name}": value for name, value in evaluate(model, part).items()}
            with suppress(UserError):
                self.name_in(metrics)
                return
        self.name_in(metrics)

    def name_in(self, metrics: Mapping[str, float]) -> str:
        """Return the metric for the best model, as `metrics` names it; `eval_` may be left out, as in transformers."""
        given = str(self.training.metric_for_best_model)
        for name in (given, f"eval_{given}"):
            if name in metrics:
                return name
        raise UserError(f"training.metric_for_best_model: unknown metric {given}; use one of {', '.join(metrics)}")

    def is_better(self, metrics: dict[str, float], step: int) -> bool:
        """Return whether this evaluation is the best so far. Raises UserError for an unknown metric."""
        if self.training.metric_for_best_model is None:
            return False
        name = self.name_in(metrics)
        self.stale += 1
        sign = -1 if name.endswith(LOWER_IS_BETTER) else 1  # also masked_loss, detection_loss
        if not math.isfinite(metrics[name]) or (self.best and sign * metrics[name] <= sign * self.best[name]):
            return False
        self.best = metrics | {"step": step}
        self.stale = 0
        return True

    @property
    def out_of_patience(self) -> bool:
        patience = self.training.early_stopping_patience
        return patience is not None and self.stale >= patience

    def prune(self, newest: int) -> None:
        """Delete the checkpoints that are no longer needed. newest: the step that was just saved.

        Checkpoints of later steps are damaged: the run skipped them when it resumed.
        """
        steps = [step for step in steps_in(self.folder) if step <= newest]
        kept = {*steps[-self.training.save_total_limit :], *self._to_average(steps)}
        prune(self.folder, kept | ({int(self.best["step"])} if self.best else set()))

    def _to_average(self, steps: list[int]) -> list[int]:
        """Return the saved steps to average: the planned ones and the last.

        A signal saves further checkpoints. They are left out, so that an interruption does not change the result.
        """
        if not self.training.average_last:
            return []
        planned = [step for step in steps if step % (self.training.save_steps or 1) == 0 or step == steps[-1]]
        return planned[-self.training.average_last :]

    def load(self, model: nn.Module) -> None:
        """Load the selected weights into the model. Mean of the last checkpoints: Vaswani et al. 2017, section 6.1.

        Raises UserError when a selected checkpoint is damaged or deleted.
        """
        again = f"delete {self.folder} and train again with --resume"
        steps = [int(self.best["step"])] if self.best else self._to_average(steps_in(self.folder))
        if not steps:
            return
        for path in (paths := [checkpoint_of(self.folder, step) for step in steps]):
            if why := damage(path):
                raise UserError(f"{path}: cannot load the selected weights: {why}; {again}")
        count, every = self.training.average_last or 1, self.training.save_steps or 1
        if not self.best and len(steps) < (expected := min(count, -(-steps[-1] // every))):
            raise UserError(
                f"{self.folder}: {expected} checkpoints are to be averaged, but only {len(steps)} are left; {again}"
            )
        load_weights(paths, model)


@contextmanager
def room_for_weights(run: Run, model: nn.Module) -> Iterator[None]:
    """Without `save_steps`, reserve disk space for the weights while they are trained."""
    folder = run.output / "checkpoints"
    if run.training.save_steps is not None:
        yield
        return
    tensors = [*trained_tensors(model, dict(model.named_parameters())).values(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    size += 512 * len(tensors) + 2**16 + 2**14 * run.accelerator.num_processes  # headers, records, random states
    reserve(folder, run.accelerator, size)
    try:
        yield
    finally:
        if run.is_main:
            release_room(folder)


def drop_last(run: Run, best: dict[str, float]) -> None:
    """Without `save_steps`, delete the checkpoint that kept the weights until the record of the run was written."""
    folder = run.output / "checkpoints"
    if run.training.save_steps is None and run.is_main and folder.is_dir():
        prune(folder, {int(best["step"])} if best else ())
        with suppress(OSError):  # not empty
            folder.rmdir()
