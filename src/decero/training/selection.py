"""Which weights a run ends with: the last, the best by a metric, or the mean of the last few; and when it stops."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from decero.errors import UserError
from decero.training.checkpoint import damage, load_weights, prune
from decero.training.config import TrainingSection

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

    @property
    def best_path(self) -> Path | None:
        return self.folder / f"step-{int(self.best['step']):08d}" if self.best else None

    def prune(self) -> None:
        """Delete the checkpoints that nobody will ask for."""
        prune(self.folder, max(self.training.save_total_limit, self.training.average_last or 1), self.best_path)

    def load(self, model: nn.Module) -> None:
        """The weights that were selected, into the model. The mean of the last: Vaswani et al. 2017, section 6.1.

        Raises UserError when a checkpoint that is needed was damaged since.
        """
        newest = sorted(self.folder.glob("step-*"))
        paths = [self.best_path] if self.best_path else newest[-(self.training.average_last or 0) :]
        if not self.best_path and not self.training.average_last:
            return
        for path in paths:
            if why := damage(path):
                raise UserError(f"{path}: its weights were to be kept, and {why}; delete it and --resume")
        load_weights(paths, model)
