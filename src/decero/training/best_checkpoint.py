"""Which weights a run ends with: the last, the best by a metric, or the mean of the last few; and when it stops."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from decero.config.sections import TrainingSection
from decero.errors import UserError
from decero.training.checkpoint import checkpoint_of, damage, load_weights, prune, steps_in

LOWER_IS_BETTER = ("loss", "perplexity", "mse", "mae", "bits_per_byte")


@dataclass
class Selection:
    """What evaluations said so far. best: the metrics of the best and its step. stale: evaluations since then."""

    training: TrainingSection
    folder: Path
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0

    def due(self, done: int, last: int, steps_per_epoch: float) -> bool:
        """Whether to evaluate after so many steps."""
        strategy = self.training.eval_strategy
        every = {"steps": self.training.eval_steps, "epoch": steps_per_epoch}.get(strategy)
        return every is not None and (done % every == 0 or done == last)

    def is_better(self, metrics: dict[str, float], step: int) -> bool:
        """Whether this evaluation is the best so far. Raises UserError for a metric that is not among them."""
        name = self.training.metric_for_best_model
        if name is None:
            return False
        if name not in metrics:
            raise UserError(f"training.metric_for_best_model: {name} is not among {', '.join(metrics)}")
        self.stale += 1
        sign = -1 if name.removeprefix("eval_") in LOWER_IS_BETTER else 1
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
        """Delete the checkpoints that nobody will ask for. newest: the step that was just saved.

        Those of later steps were passed over as damaged when the run was resumed.
        """
        steps = [step for step in steps_in(self.folder) if step <= newest]
        kept = {*steps[-self.training.save_total_limit :], *self._to_average(steps)}
        prune(self.folder, kept | ({int(self.best["step"])} if self.best else set()))

    def _to_average(self, steps: list[int]) -> list[int]:
        """Of saved steps those that count: as planned, or the last. A signal saves others, which change no result."""
        if not self.training.average_last:
            return []
        planned = [step for step in steps if step % (self.training.save_steps or 1) == 0 or step == steps[-1]]
        return planned[-self.training.average_last :]

    def load(self, model: nn.Module) -> None:
        """The weights that were selected, into the model. The mean of the last: Vaswani et al. 2017, section 6.1.

        Raises UserError when a checkpoint that is needed was damaged or deleted since.
        """
        again = f"delete {self.folder} and --resume, which trains again"
        steps = [int(self.best["step"])] if self.best else self._to_average(steps_in(self.folder))
        if not steps:
            return
        for path in (paths := [checkpoint_of(self.folder, step) for step in steps]):
            if why := damage(path):
                raise UserError(f"{path}: its weights were to be kept, and {why}; {again}")
        many, every = self.training.average_last or 1, self.training.save_steps or 1
        if not self.best and len(steps) < (there := min(many, -(-steps[-1] // every))):
            left = f"{there} checkpoints were to be averaged, and {len(steps)} are left"
            raise UserError(f"{self.folder}: {left}; {again}")
        load_weights(paths, model)
