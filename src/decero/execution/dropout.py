"""Compute dropout on a CPU faster than torch does."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sixteen_bit_dropout(x: Tensor, p: float) -> Tensor:
    """Zero a share `p` of the elements of `x` and scale the others by 1 / (1 - p): Srivastava et al. 2014, section 4.

    p is rounded to a multiple of 1/65,536, and the scale to the type of `x`, as in torch. On a CPU `F.dropout` draws a
    number for each element, one after the other. Here 64 random bits serve four elements, in about half the time.
    Follows torch's seed. Elsewhere, and in a compiled graph, it is `F.dropout`.
    """
    threshold = round(p * 2**16)
    if not 0 < threshold < 2**16 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - threshold))


class SixteenBitDropout(nn.Dropout):
    """Apply `sixteen_bit_dropout` in training."""

    def forward(self, x: Tensor) -> Tensor:
        return sixteen_bit_dropout(x, self.p) if self.training else x


def draw_fewer_bits(model: nn.Module) -> None:
    """Turn each `nn.Dropout` of a model into a `SixteenBitDropout`. Names, hooks and shared modules stay."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = SixteenBitDropout
