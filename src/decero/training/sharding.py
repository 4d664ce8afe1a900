"""Sharded training, FSDP2: each process holds its share of weights, gradients, moments, and gathers a layer at a time.

The launcher asks for it (`configs/accelerate/fsdp2.yaml`); torch's `fully_shard` does it, on CPUs over gloo as on GPUs
over NCCL. accelerate has no part in it: asked for FSDP on a CPU, it does something else and says nothing.
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

LAYER_LISTS = ("layers", "layer", "block", "h")
# What the launcher's file may ask for besides, and would not get.
REFUSED = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params is not supported; set it to false and start more processes",
    "FSDP_ACTIVATION_CHECKPOINTING": "give training.gradient_checkpointing=true for fsdp_activation_checkpointing",
}


def sharding_asked_for() -> bool:
    """Whether the launcher asks for FSDP2. It is taken out of the environment, where accelerate would act on it.

    Raises UserError for FSDP 1, and for what else is asked for and not there.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"topology: FSDP {version} is not supported; set fsdp_version: 2, as configs/accelerate/fsdp2.yaml has it"
        )
    for name, mend in REFUSED.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise UserError(f"topology: {mend}")
    return True


class Sharded(nn.Module):
    """A model whose parameters are spread over the processes; `module` is what trains.

    A loss is computed inside `forward`: weights that it reads beside the model's own forward (the projection, an
    encoder called by itself) are there, too, and their gradients are known. Every process computes as many losses.
    """

    module: Any

    def __init__(self, model: nn.Module):
        super().__init__()
        self._whole = [model]  # in a list, so that it is no part of this module
        same_weights: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
        self.module = copy.deepcopy(model, same_weights)

    def forward(self, compute: Callable[..., Tensor], *args: Any) -> Tensor:
        return compute(self.module, *args)

    def gather(self) -> Any:
        """The whole model, its weights of this moment on every process: the object that sharding was given.

        All processes must call it. 4 bytes a parameter more, until `release`.
        """
        with torch.no_grad():
            for whole, part in zip(self._whole[0].parameters(), self.module.parameters(), strict=True):
                whole.data = full(part)
        return self._whole[0]

    def release(self) -> None:
        """Let go of the whole weights."""
        for parameter in self._whole[0].parameters():
            parameter.data = parameter.data.new_empty(0)


def shard(accelerator: Accelerator, model: nn.Module) -> Sharded:
    """Spread the weights of `model`, as the main process has them, over all processes; it is empty until a `gather`.

    Each layer is gathered before it computes and let go of after, forwards and backwards; what is in no layer (the
    embeddings, the head) is gathered once a pass. Tied weights stay one weight. Gradients are summed, not averaged: the
    loss is divided by the items of all processes already.

    Raises UserError for a parameter that is a single number without a dimension to cut.
    """
    from torch.distributed.device_mesh import init_device_mesh  # not every torch is built with it
    from torch.distributed.fsdp import fully_shard

    if scalar := next((name for name, parameter in model.named_parameters() if not parameter.dim()), None):
        raise UserError(f"topology: {scalar} is a single number and cannot be sharded; use configs/accelerate/ddp.yaml")
    broadcast([parameter.data for parameter in model.parameters()])
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    sharded: Any = Sharded(model)
    for unit in [*reversed(layers_of(sharded.module)), sharded]:  # what lies within another comes first
        fully_shard(unit, mesh=mesh)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    sharded.release()
    return sharded


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, outermost first, that share no parameter with what is outside them."""
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        lists = [m for name, m in model.named_modules() if name.rpartition(".")[2] in LAYER_LISTS]
        layers = [layer for each in lists if isinstance(each, nn.ModuleList) for layer in each]
    uses = _uses(model)
    return [layer for layer in layers if all(uses[name] == times for name, times in _uses(layer).items())]


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


def loss_of(model: nn.Module, loss: Callable[..., Tensor], batch: Any, last: bool) -> Tensor:
    """loss(model, batch), sharded or not. last: its gradient completes a step, and what there is by then is summed."""
    if not isinstance(model, Sharded):
        return loss(model, batch)
    model.set_requires_gradient_sync(last)  # type: ignore[operator]
    return model(loss, batch)


@contextmanager
def whole(accelerator: Accelerator, model: nn.Module) -> Iterator[Any]:
    """The model without wrappers, whole on every process, to evaluate and to generate with.

    Processes have different numbers of batches to evaluate and of tokens to write, so none may wait for another's
    layers: a sharded model is gathered once, 4 bytes a parameter, and let go of after. All processes must enter.
    """
    if not isinstance(model, Sharded):
        yield accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        return
    yield model.gather()
    model.release()  # not after an error: some process may be the only one that has it


@contextmanager
def evaluating(accelerator: Accelerator, model: nn.Module) -> Iterator[Any]:
    """`whole`, without dropout inside."""
    with whole(accelerator, model) as bare:
        was_training = bare.training
        bare.eval()
        yield bare
        bare.train(was_training)


def full(tensor: Any) -> Tensor:
    """All of a tensor, of which a shard may lie here; all processes must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
