"""Weights laid out once as oneDNN multiplies them, for the few rows that a step of decoding has: fp32 on a CPU.

`F.linear` hands fp32 to the BLAS, which reads the weights afresh in every call and is slowest from 2 to 31 rows. oneDNN
with a layout of its own is 1.2 to 3 times as fast there (measured on an AMD EPYC); it sums in another order, so that
outputs agree to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

MEMORY_SHARE = 0.25  # of what is free: the layout is a second copy of the weights


@contextmanager
def laid_out(model: nn.Module) -> Iterator[int]:
    """Inside, linear layers read the second copy when no gradient is asked for. Gives how many do; 0 is all as it was.

    Weights must not change inside. Layers that something else already took over (hooks of quantisers, adapters) and
    those in another type or on another device are left alone; inside another `laid_out` nothing is done again.
    """
    layers = {m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m) and _fits(m.weight)}
    weights = {m.weight for m in layers}
    room = MEMORY_SHARE * psutil.virtual_memory().available
    if not torch.backends.mkldnn.is_available() or sum(4 * w.numel() for w in weights) > room:
        layers = set()
    with torch.no_grad():
        packed = {w: torch.ops.mkldnn._reorder_linear_weight(w.detach()) for w in {m.weight for m in layers}}
    for layer in layers:
        layer.forward = _reading(layer, packed[layer.weight])  # type: ignore[method-assign]
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _reading(layer: nn.Linear, packed: Tensor):
    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(x, layer.weight, layer.bias)
        return torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")

    return forward
