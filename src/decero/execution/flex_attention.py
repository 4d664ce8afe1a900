"""Use FlexAttention for packed rows: it skips pairs of blocks of 128 tokens that share no text.

Tests compare it with sdpa on a CPU, uncompiled. Its speed was not measured, because no GPU was available. So each run
checks it: `unsupported_feature` checks the model's features, `trial` compares it with sdpa on the device, and `prove`
compares the model itself. Dimensions as in `decero.models.attention`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from decero.errors import root_line
from decero.execution.transformers_internals import (
    flex_attention_forward,
    head_sizes,
    register_attention,
    sdpa_attention_forward,
    supports,
)

FLEX = "flex"
LONG_ROW = 512  # four blocks; fewer leave little to skip. A guess, not a measurement


def document_mask(
    query_text_BL: Tensor, key_text_BM: Tensor, causal: bool, order: tuple[Tensor, Tensor] | None = None
) -> BlockMask:
    """Build `block_mask` for FlexAttention: (batch, 1, length, memory).

    It is built from a dense mask once for all layers. So it needs the memory of a dense mask, but not the time of one
    in each layer.
    """
    (B, L), M = query_text_BL.shape, key_text_BM.shape[1]
    device = query_text_BL.device
    # A tensor instead of a branch: causal and other masks then share one graph. Dynamo keeps at most eight.
    if order is None:
        last_visible_L = torch.arange(L, device=device) if causal else torch.full((L,), M, device=device)
        order = last_visible_L.expand(B, L), torch.arange(M, device=device).expand(B, M)
    horizon_BL, rank_BM = order

    def is_visible(b, h, q, k):
        return (query_text_BL[b, q] == key_text_BM[b, k]) & (rank_BM[b, k] <= horizon_BL[b, q])

    return create_block_mask(is_visible, B, None, L, M, device=str(device))


def flex_or_sdpa(module: nn.Module, q_BHLK, k_BGMK, v_BGMK, attention_mask=None, *, position_bias=None, **kwargs):
    """Run FlexAttention if the mask is a `BlockMask`, else sdpa (padded rows, evaluation, generation).

    Returns (batch, length, heads, head size), and None for the weights.

    Raises ValueError for dropout and for a position bias, which FlexAttention cannot add with a gradient.
    """
    if not isinstance(attention_mask, BlockMask):
        kwargs |= {} if position_bias is None else {"position_bias": position_bias}
        return sdpa_attention_forward(module, q_BHLK, k_BGMK, v_BGMK, attention_mask, **kwargs)
    if position_bias is not None:
        raise ValueError("flex_attention does not support a position bias")
    # Under autocast, rotary positions leave queries and keys in fp32. sdpa casts them; FlexAttention raises an error.
    dtype, device = v_BGMK.dtype, v_BGMK.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    q_BHLK, k_BGMK, v_BGMK = (x.to(dtype) for x in (q_BHLK, k_BGMK, v_BGMK))
    return flex_attention_forward(module, q_BHLK, k_BGMK, v_BGMK, attention_mask, **kwargs)[0], None


register_attention(FLEX, flex_or_sdpa)  # padded rows use sdpa


def unsupported_feature(model: PreTrainedModel) -> str | None:
    """Return what FlexAttention does not support in this model, or None."""
    config: Any = model.config
    fields = config.to_dict()
    if not supports(model, "flex_attn"):
        return f"{type(model).__name__} does not support it"
    for name, value in fields.items():
        if "att" in name and "drop" in name and isinstance(value, int | float) and value > 0:
            return f"it does not support dropout, and {name} is {value}"
    if fields.get("relative_attention_num_buckets") and fields.get("position_embedding_type", "relative") == "relative":
        return "it does not support relative positions"
    if "sliding_attention" in (fields.get("layer_types") or ()):
        return "sliding-window layers need a dense mask"
    return None


def trial(model: PreTrainedModel, device: torch.device, dtype: torch.dtype, length: int) -> str | None:
    """Compare compiled FlexAttention with sdpa on `device`, forward and backward; return why it fails, or None.

    Uses rows of `length` tokens with three texts and padding, and heads of the model's number and size.
    """
    if device.type == "cpu":
        return "it has no backward pass on a CPU"
    config: Any = model.config
    H = getattr(config, "num_attention_heads", None) or 1
    G = getattr(config, "num_key_value_heads", None) or H
    K = max(head_sizes(config))
    try:
        for causal in (False, True):
            error = relative_error(H, G, K, length, causal, device, dtype)
            if not error <= 0.02:  # rounding to bf16 gives 0.004, a wrong mask at least 0.3
                return f"in a trial it differed from sdpa by {error:.0%}"
    except Exception as failure:  # each compiler backend has its own exceptions
        return f"a trial failed: {root_line(failure)[:120]}"
    return None


def relative_error(H, G, K, length: int, causal: bool, device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest relative error of FlexAttention's output and gradients against sdpa's."""
    draw = torch.Generator(device).manual_seed(0)
    q_BHLK, k_BGMK, v_BGMK, grad_BHLK = (
        torch.randn(2, heads, length, K, generator=draw, device=device, dtype=dtype) for heads in (H, G, G, H)
    )
    text_L = torch.arange(length, device=device) * 3 // length + 1
    text_L[-5:] = 0
    text_BL = torch.stack((text_L, text_L.flip(0)))
    same_B1LM = (text_BL[:, None, :, None] == text_BL[:, None, None, :]).tril(0 if causal else length)
    inputs = [x.requires_grad_() for x in (q_BHLK, k_BGMK, v_BGMK)]
    k_BHMK, v_BHMK = (x.repeat_interleave(H // G, dim=1) for x in (k_BGMK, v_BGMK))
    expected = F.scaled_dot_product_attention(q_BHLK, k_BHMK, v_BHMK, attn_mask=same_B1LM)
    mask = document_mask(text_BL, text_BL, causal)
    got = flex_or_sdpa(nn.Identity(), q_BHLK, k_BGMK, v_BGMK, mask)[0].transpose(1, 2)
    pairs = [(got.detach(), expected.detach())]
    pairs += zip(*(torch.autograd.grad(out, inputs, grad_BHLK) for out in (got, expected)), strict=True)
    errors = [float((actual - sdpa).float().norm() / sdpa.float().norm()) for actual, sdpa in pairs]
    return math.nan if any(map(math.isnan, errors)) else max(errors)
