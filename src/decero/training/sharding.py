"""Train with sharded weights (FSDP2): each process holds a share of weights, gradients and moments.

One layer at a time is gathered. The launcher requests sharding (`configs/accelerate/fsdp2.yaml`); torch's
`fully_shard` does it, on CPUs over gloo and on GPUs over NCCL. accelerate's FSDP is not used: on CPUs it silently does
something else.
"""

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from decero.errors import UserError
from decero.execution.transformers_internals import GradientCheckpointingLayer
from decero.training.memory import out_of_memory

LAYER_LISTS = ("layers", "layer", "block", "h")
# Other requests of the launcher's file that are not supported.
REFUSED = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params is not supported; set it to false and start more processes",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing is not supported; "
    "set training.gradient_checkpointing=true",
}


def sharding_requested() -> bool:
    """Return whether the launcher requests FSDP2, and remove the request from the environment.

    Otherwise accelerate would act on it.

    Raises UserError for FSDP 1 and for unsupported FSDP options.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"topology: FSDP {version} is not supported; set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml"
        )
    for name, mend in REFUSED.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise UserError(f"topology: {mend}")
    return True


class Sharded(nn.Module):
    """A model whose parameters are sharded over the processes; `module` is the part that trains.

    The loss is computed inside `forward`. So weights that the loss reads outside the model's own forward (the
    projection, a separately called encoder) are gathered, too, and get gradients. All processes must compute the same
    number of losses.
    """

    module: Any

    def __init__(self, model: nn.Module):
        super().__init__()
        self._whole = [model]  # in a list, so that it is not registered as a submodule
        same_weights: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
        self.module = copy.deepcopy(model, same_weights)

    def forward(self, compute: Callable[..., Tensor], *args: Any) -> Tensor:
        return compute(self.module, *args)

    def gather(self) -> Any:
        """Gather the current weights into the original model, on every process, and return it.

        All processes must call it. Takes 4 more bytes per parameter until `release`.
        """
        with torch.no_grad():
            for original, part in zip(self._whole[0].parameters(), self.module.parameters(), strict=True):
                original.data = full(part)
        return self._whole[0]

    def release(self) -> None:
        """Free the gathered weights."""
        for parameter in self._whole[0].parameters():
            parameter.data = parameter.data.new_empty(0)


def shard(accelerator: Accelerator, model: nn.Module) -> Sharded:
    """Shard the weights of the main process over all processes. `model` itself is empty until `gather`.

    Each layer is gathered before it computes and freed afterwards, in the forward and backward pass. Weights outside
    the layers (embeddings, head) are gathered once per pass. Tied weights stay tied. Gradients are summed, not
    averaged, because the loss is already divided by the items of all processes.

    Raises UserError for a scalar parameter, which has no dimension to shard.
    """
    from torch.distributed.device_mesh import init_device_mesh  # not every torch is built with it
    from torch.distributed.fsdp import fully_shard

    if scalar := next((name for name, parameter in model.named_parameters() if not parameter.dim()), None):
        raise UserError(f"topology: {scalar} is a single number and cannot be sharded; use configs/accelerate/ddp.yaml")
    broadcast([parameter.data for parameter in model.parameters()])
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    sharded: Any = Sharded(model)
    for unit in [*reversed(layers_of(sharded.module)), sharded]:  # inner modules first
        fully_shard(unit, mesh=mesh)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo supports only sums
    sharded.release()
    return sharded


def layers_of(model: nn.Module) -> list[nn.Module]:
    """List the layers of a model, outermost first, that share no parameter with modules outside them."""
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        lists = [m for name, m in model.named_modules() if name.rpartition(".")[2] in LAYER_LISTS]
        layers = [layer for stack in lists if isinstance(stack, nn.ModuleList) for layer in stack]
    uses = _count_uses(model)
    return [layer for layer in layers if all(uses[key] == times for key, times in _count_uses(layer).items())]


def _count_uses(module: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


def loss_of(model: nn.Module, loss: Callable[..., Tensor], batch: Any, last: bool) -> Tensor:
    """Compute loss(model, batch), sharded or not. last: sum the gradients of the step in its backward pass."""
    if not isinstance(model, Sharded):
        return loss(model, batch)
    model.set_requires_gradient_sync(last)  # type: ignore[operator]
    return model(loss, batch)


@contextmanager
def unsharded(accelerator: Accelerator, model: nn.Module) -> Iterator[Any]:
    """Yield the model without wrappers, complete on every process, for evaluation and generation.

    Processes evaluate different numbers of batches and generate different numbers of tokens, so they must not wait
    for each other at every layer. Hence a sharded model is gathered once (4 bytes per parameter) and freed afterwards.
    All processes must enter.
    """
    if not isinstance(model, Sharded):
        yield accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        return
    yield model.gather()
    model.release()  # not after an error, which may occur on one process only


@contextmanager
def evaluating(accelerator: Accelerator, model: nn.Module) -> Iterator[Any]:
    """Yield the model as `unsharded` does, in evaluation mode (no dropout). Raises UserError when memory runs out."""
    with unsharded(accelerator, model) as bare:
        was_training = bare.training
        bare.eval()
        try:
            yield bare
        except Exception as error:
            if not out_of_memory(error):
                raise
            mend = "lower training.per_device_eval_batch_size, and go on with --resume"
            raise UserError(f"out of memory in an evaluation; {mend}") from error
        bare.train(was_training)


def full(tensor: Any) -> Tensor:
    """Return the whole tensor, gathered if it is sharded; all processes must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
