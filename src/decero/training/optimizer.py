"""Build optimizers and learning-rate schedules by name, from torch and transformers."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from decero.config.sections import OptimSection
from decero.errors import UserError, did_you_mean

OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
}
FUSED = ("adamw", "adam", "sgd")
FUSED_ON_SHARDS = ("adamw", "adam")  # torch has no other fused optimizers for DTensors
SCHEDULES = {"linear": "linear", "cosine": "cosine", "inverse_sqrt": "inverse_sqrt", "constant": "constant_with_warmup"}
SCHEDULES |= {"warmup_stable_decay": "warmup_stable_decay"}


def build_optimizer(model: nn.Module, config: OptimSection) -> torch.optim.Optimizer:
    """Build the named optimizer with weight decay for matrices only, not for biases and norms (one dimension).

    Raises UserError for an unknown argument, and for adafactor with sharded weights: its moments are means over whole
    rows and columns.
    """
    cls = OPTIMIZERS[config.name]
    # capturable and differentiable are for CUDA graphs and gradients of updates; neither works in this loop
    accepted = set(inspect.signature(cls).parameters) - {"params", "lr", "weight_decay", "capturable", "differentiable"}
    for name in config.arguments:
        if name not in accepted:
            near = did_you_mean(name, accepted, "optim.arguments.") or f"; use one of {', '.join(sorted(accepted))}"
            raise UserError(f"optim.arguments.{name}: unknown argument of {cls.__name__}{near}")
    trained = [p for p in model.parameters() if p.requires_grad]
    sharded = any(hasattr(p, "to_local") for p in trained)
    if sharded and config.name == "adafactor":
        others = ", ".join(name for name in OPTIMIZERS if name != "adafactor")
        raise UserError(f"optim.name: adafactor does not support sharded weights (FSDP2); use one of {others}")
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    # Fused: one kernel updates many parameters, instead of several kernels for each parameter.
    can_fuse = config.name in (FUSED_ON_SHARDS if sharded else FUSED)
    fused = {"fused": True} if can_fuse and "foreach" not in config.arguments else {}
    try:
        return cls([g for g in groups if g["params"]], lr=config.learning_rate, **(fused | config.arguments))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"optim.arguments: {cls.__name__} rejects them: {error}") from error


def learning_rate_at(
    optimizer: torch.optim.Optimizer, config: OptimSection, max_train_steps: int
) -> Callable[[int], float]:
    """Return the learning rate as a function of the step: no state to save, equal for any number of processes.

    `warmup_stable_decay` is a trapezoid: warm-up, constant, and linear to zero in the last `num_decay_steps` (Zhai et
    al. 2022, section 3.5; Hägele et al. 2024).
    Raises UserError when the warm-up, or warm-up and decay, are longer than the run.
    """
    trapezoid = config.schedule == "warmup_stable_decay"
    decay = config.num_decay_steps or -(-max_train_steps // 5)
    if config.num_decay_steps is not None and not trapezoid:
        raise UserError(
            f"optim.num_decay_steps: the schedule {config.schedule} has none; remove it, or set "
            "optim.schedule=warmup_stable_decay"
        )
    if trapezoid and config.num_warmup_steps + decay > max_train_steps:
        raise UserError(
            f"optim: {config.num_warmup_steps} steps of warm-up and {decay} of decay exceed the {max_train_steps} "
            "steps of the run; lower num_warmup_steps or num_decay_steps"
        )
    if config.num_warmup_steps > max_train_steps:
        raise UserError(
            f"optim.num_warmup_steps {config.num_warmup_steps} exceeds the {max_train_steps} steps of the run; lower it"
        )
    scheduler = get_scheduler(
        SCHEDULES[config.schedule],
        optimizer,
        num_warmup_steps=config.num_warmup_steps,
        num_training_steps=max_train_steps,
        scheduler_specific_kwargs={"num_decay_steps": decay, "decay_type": "linear"} if trapezoid else None,
    )
    return lambda step: config.learning_rate * scheduler.lr_lambdas[0](step)
