"""FlexAttention for packed rows: pairs of blocks of 128 tokens that share no text are skipped, where a mask hides them.

It was checked on a CPU, uncompiled, that packed rows give what sdpa gives; its speed was not measured, for no GPU was
at hand. So a run believes nothing: `unfit` says what it cannot serve, `trial` compares it on the device, and `prove`
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
    register_attention,
    sdpa_attention_forward,
    supports,
)

FLEX = "flex"
LONG_ROW = 512  # four blocks: in fewer there is little to skip. A guess, not a measurement


def document_mask(query_text_BL: Tensor, key_text_BM: Tensor, causal: bool) -> BlockMask:
    """(batch, 1, length, memory): `block_mask` as FlexAttention wants it.

    It is made from a dense mask, once for all layers, so it takes the memory of one but not its time in each layer.
    """
    (B, L), M = query_text_BL.shape, key_text_BM.shape[1]
    device = query_text_BL.device
    # How far a place sees is a tensor, not a branch, so that causal and other masks are one graph: Dynamo keeps eight.
    reach_L = torch.arange(L, device=device) if causal else torch.full((L,), M, device=device)

    def sees(b, h, q, k):
        return (query_text_BL[b, q] == key_text_BM[b, k]) & (k <= reach_L[q])

    return create_block_mask(sees, B, None, L, M, device=str(device))


def flex_or_sdpa(module: nn.Module, q_BHLK, k_BGMK, v_BGMK, attention_mask=None, *, position_bias=None, **kwargs):
    """FlexAttention where the mask is a `BlockMask`, sdpa for all that is not packed: evaluation, generation, padding.

    Returns (batch, length, heads, head size) and no weights. Raises ValueError for what FlexAttention cannot add to the
    scores with a gradient (a bias of positions) and for dropout.
    """
    if not isinstance(attention_mask, BlockMask):
        kwargs |= {} if position_bias is None else {"position_bias": position_bias}
        return sdpa_attention_forward(module, q_BHLK, k_BGMK, v_BGMK, attention_mask, **kwargs)
    if position_bias is not None:
        raise ValueError("flex_attention is not given biases of positions")
    # Rotary positions leave queries and keys in fp32 under autocast, which casts for sdpa and refuses to mix here.
    kind, device = v_BGMK.dtype, v_BGMK.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    q_BHLK, k_BGMK, v_BGMK = (x.to(kind) for x in (q_BHLK, k_BGMK, v_BGMK))
    return flex_attention_forward(module, q_BHLK, k_BGMK, v_BGMK, attention_mask, **kwargs)[0], None


register_attention(FLEX, flex_or_sdpa)  # what is not packed goes to sdpa


def unfit(model: PreTrainedModel) -> str | None:
    """What of a model FlexAttention does not serve, or None."""
    config: Any = model.config
    fields = config.to_dict()
    if not supports(model, "flex_attn"):
        return f"{type(model).__name__} does not support it"
    for name, value in fields.items():
        if "att" in name and "drop" in name and isinstance(value, int | float) and value > 0:
            return f"it has no dropout, and {name} is {value}"
    if fields.get("relative_attention_num_buckets") and fields.get("position_embedding_type", "relative") == "relative":
        return "relative positions are added to the scores"
    if "sliding_attention" in (fields.get("layer_types") or ()):
        return "some layers see a window, which is cut from a dense mask"
    return None


def trial(model: PreTrainedModel, device: torch.device, dtype: torch.dtype, length: int) -> str | None:
    """None where compiled FlexAttention gives what sdpa gives on `device`, forward and backward, or why not.

    Rows of `length` tokens, three texts and padding; heads of the model's number and size.
    """
    if device.type == "cpu":
        return "it has no backward pass on a CPU"
    config: Any = model.config
    H = getattr(config, "num_attention_heads", None) or 1
    G = getattr(config, "num_key_value_heads", None) or H
    K = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // H
    try:
        for causal in (False, True):
            off = disagreement(H, G, K, length, causal, device, dtype)
            if not off <= 0.02:  # rounding to bf16 is 0.004; a wrong mask, 0.3 and more
                return f"in a trial it was {off:.0%} away from sdpa"
    except Exception as error:  # each backend of the compiler has its own
        return f"a trial failed: {root_line(error)[:120]}"
    return None


def disagreement(H, G, K, length: int, causal: bool, device: torch.device, dtype: torch.dtype) -> float:
    """How far FlexAttention's mix, or any of its gradients, is from that of sdpa; 1 is as far as it is large."""
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
    offs = [float((one - other).float().norm() / other.float().norm()) for one, other in pairs]
    return math.nan if any(map(math.isnan, offs)) else max(offs)
