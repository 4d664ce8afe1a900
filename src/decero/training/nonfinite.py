"""Which step, which examples, which layer: what to say when a loss or a gradient is not a number."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn

from decero.training.sharding import full, whole

MEND = "nothing was updated; lower optim.learning_rate, raise optim.num_warmup_steps or set training.mixed_precision=no"


def bad_loss(accelerator: Accelerator, model: nn.Module, objective: Any, suspect: Any, step: int) -> str:
    """The line for a loss that is not finite; every process calls it, the one that met the loss tells the others."""
    found = []
    with whole(accelerator, model) as bare:
        if suspect is not None:
            layer = first_bad_layer(bare, objective, send_to_device(suspect.batch, accelerator.device))
            where = f"on examples {_some(suspect.indices)}; first bad output: {layer}"
            found = [f"step {step + 1}: the loss is not finite {where}; {MEND}"]
    return next(iter(gather_object(found)), f"step {step + 1}: the loss is not finite; {MEND}")


def bad_gradient(model: nn.Module, indices: list[int], step: int) -> str:
    """The line for a gradient that is not finite though the loss was; every process calls it."""
    bare: Any = getattr(model, "module", model)
    bad = (n for n, p in bare.named_parameters() if p.grad is not None and not torch.isfinite(full(p.grad)).all())
    name = next(bad, "some parameter")
    return f"step {step + 1}: the gradient of {name} is not finite on examples {_some(indices)}; {MEND}"


def _some(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")


@torch.no_grad()
def first_bad_layer(model: nn.Module, objective: Any, batch: dict[str, torch.Tensor]) -> str:
    """The name of the first module, in order of computation, whose output holds a NaN or an infinity."""
    bad: list[str] = []

    def watch(name: str):
        def hook(_module, _inputs, output):
            tensors = output if isinstance(output, tuple | list) else [output]
            floats = [t for t in tensors if torch.is_tensor(t) and t.is_floating_point()]
            if not bad and not all(torch.isfinite(t).all() for t in floats):
                bad.append(name)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        objective.loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else "the loss itself"
