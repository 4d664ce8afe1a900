"""Mark in a checkpoint's config.json which objective it learnt from, where that decides how its holes are filled."""

from typing import Any

FIELD = "pretraining_objective"
PERMUTATION, HYBRID = "permutation_lm", "hybrid_lm"


def objective_of(config: Any) -> str | None:
    """Return `permutation_lm`, `hybrid_lm`, or None: masked or causal language modelling, or not known."""
    return getattr(config, FIELD, None)


def mark_objective(config: Any, name: str | None) -> None:
    """Write the objective into a configuration. None removes that of the checkpoint that a run began with."""
    if name or objective_of(config):
        setattr(config, FIELD, name)
