"""Build optimizers and learning-rate schedules by name, from torch, transformers and schedulefree."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    "momentum": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,  # and schedule_free_adamw, whose package is imported when it is used
}
# Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, eq. 4), so that one learning rate serves both.
DEFAULTS: dict[str, dict[str, Any]] = {"momentum": {"momentum": 0.9}, "muon": {"adjust_lr_fn": "match_rms_adamw"}}
FUSED = ("adamw", "adam", "sgd", "momentum")
FUSED_ON_SHARDS = ("adamw", "adam")  # torch has no other fused optimizers for DTensors
ON_SHARDS = ("adamw", "adam", "sgd", "momentum", "rmsprop")
SCHEDULES = {"linear": "linear", "cosine": "cosine", "inverse_sqrt": "inverse_sqrt", "constant": "constant_with_warmup"}
SCHEDULES |= {"warmup_stable_decay": "warmup_stable_decay"}
# capturable and differentiable are for CUDA graphs and gradients of updates, which do not work in this loop; the loop
# does the warm-up.
WITHHELD = {"params", "lr", "weight_decay", "capturable", "differentiable", "warmup_steps"}
TRAINED = "trained_weights"  # kept in the state of a schedule-free optimizer while the model has the mean


class Joined(torch.optim.Optimizer):
    """Several optimizers, each for its own parameters, with one state and one list of groups."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups, part.state = [next(groups) for _ in part.param_groups], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def build_optimizer(model: nn.Module, config: OptimSection) -> torch.optim.Optimizer:
    """Build the named optimizer with weight decay for matrices only, not for biases and norms (one dimension).

    Raises UserError for an unknown argument, for a package that is not installed, and with sharded weights for an
    optimizer that reads more than one number at a time (adafactor, muon) or replaces the weights (schedule-free).
    """
    cls = _class_of(config.name)
    accepted = set(inspect.signature(cls).parameters) - WITHHELD
    for name in config.arguments:
        if name not in accepted:
            near = did_you_mean(name, accepted, "optim.arguments.") or f"; use one of {', '.join(sorted(accepted))}"
            raise UserError(f"optim.arguments.{name}: unknown argument of {cls.__name__}{near}")
    trained = [p for p in model.parameters() if p.requires_grad]
    sharded = any(hasattr(p, "to_local") for p in trained)
    if sharded and config.name not in ON_SHARDS:
        raise UserError(
            f"optim.name: {config.name} does not support sharded weights (FSDP2); use one of {', '.join(ON_SHARDS)}"
        )
    arguments = DEFAULTS.get(config.name, {}) | config.arguments
    if config.name == "muon":
        return _muon(model, trained, config, arguments)
    # Fused: one kernel updates many parameters, instead of several kernels for each parameter.
    can_fuse = config.name in (FUSED_ON_SHARDS if sharded else FUSED)
    fused = {"fused": True} if can_fuse and "foreach" not in arguments else {}
    optimizer = _checked(cls, _groups(trained, config.weight_decay), config, fused | arguments)
    if config.schedule_free:
        _check_numbers(optimizer, "eps", "r", "weight_lr_power")
        optimizer.train()
    return optimizer


def _class_of(name: str) -> Any:
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise UserError(
            f"optim.name: {name} needs the package schedulefree: pip install 'decero[schedulefree]'"
        ) from None
    return AdamWScheduleFree


def _groups(weights: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in weights if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _checked(cls: Any, groups: list[dict[str, Any]], config: OptimSection, arguments: dict[str, Any]) -> Any:
    try:
        return cls(groups, lr=config.learning_rate, **arguments)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"optim.arguments: {cls.__name__} rejects them: {error}") from error


def _check_numbers(optimizer: torch.optim.Optimizer, *names: str) -> None:
    """Check what torch's Muon and schedulefree find out in the first step, or never."""
    group = optimizer.param_groups[0]
    betas = group.get("betas", (0.9, 0.9))
    if not (isinstance(betas, list | tuple) and 0 < betas[0] < 1 and 0 <= betas[1] < 1):
        raise UserError(f"optim.arguments.betas is {betas}; give two numbers below 1, the first above 0")
    for name in names:
        if not (isinstance(group[name], int | float) and group[name] >= 0):
            raise UserError(f"optim.arguments.{name} is {group[name]}; give a number from 0")
    if not isinstance(group.get("ns_coefficients", ()), list | tuple):
        raise UserError(f"optim.arguments.ns_coefficients is {group['ns_coefficients']}; give three numbers in a list")


def _muon(model: nn.Module, trained: list[nn.Parameter], config: OptimSection, arguments: dict[str, Any]) -> Joined:
    matrices = layer_matrices(model)
    if not matrices:
        raise UserError("optim.name: muon trains the matrices of layers, and this run trains none; use adamw")
    chosen = {id(p) for p in matrices}
    parts = [_checked(torch.optim.Muon, [{"params": matrices, "weight_decay": config.weight_decay}], config, arguments)]
    _check_numbers(parts[0], "eps", "momentum")
    if others := [p for p in trained if id(p) not in chosen]:
        groups = _groups(others, config.weight_decay)
        parts.append(torch.optim.AdamW(groups, lr=config.learning_rate, fused=True))
    return Joined(parts)


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """List the trained matrices that Muon orthogonalizes: all but embeddings and the projection to the vocabulary.

    Those work on one-hot vectors, where AdamW is better (Jordan et al. 2024).
    """
    excluded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    projection = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    excluded |= {id(projection.weight)} if projection is not None else set()
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in excluded]


def _schedule_free(optimizer: Any) -> bool:
    return "train_mode" in optimizer.param_groups[0]


@contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """Give the model the weights to evaluate and save; afterwards it has the trained ones again, to the bit.

    They differ for schedule-free optimizers only: gradients are taken at y, and x, the mean, is the model (Defazio et
    al. 2024, eq. 2 to 4). Meanwhile the optimizer's state holds y, so that a checkpoint has both.
    """
    if _schedule_free(optimizer):
        for parameter, values in optimizer.state.items():
            values[TRAINED] = parameter.detach().clone()
        optimizer.eval()
    yield
    restore_trained(optimizer)


def restore_trained(optimizer: Any) -> None:
    """Give the model the weights that are trained, from the state that `averaged` kept or a checkpoint brought."""
    if _schedule_free(optimizer):
        optimizer.train()
        for parameter, values in optimizer.state.items():
            if TRAINED in values:
                parameter.data.copy_(values.pop(TRAINED))


def on_average(optimizer: Any, evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Return `evaluate`, run on the weights of `averaged`."""

    @functools.wraps(evaluate)
    def on_the_mean(model: Any, *rows: Any) -> Any:
        with averaged(optimizer):
            return evaluate(model, *rows)

    return on_the_mean


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
            f"optim.num_warmup_steps {config.num_warmup_steps} exceeds the {max_train_steps} steps of the run; "
            "lower it, or train longer"
        )
    scheduler = get_scheduler(
        SCHEDULES[config.schedule],
        optimizer,
        num_warmup_steps=config.num_warmup_steps,
        num_training_steps=max_train_steps,
        scheduler_specific_kwargs={"num_decay_steps": decay, "decay_type": "linear"} if trapezoid else None,
    )
    return lambda step: config.learning_rate * scheduler.lr_lambdas[0](step)
