"""Which attention kernel a run takes, and why: any model that goes through transformers' attention interface."""

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


def matmul_attention(
    module: nn.Module, q_BHLK, k_BGMK, v_BGMK, attention_mask=None, *, scaling=None, dropout=0.0, is_causal=None,
    position_bias=None, **kwargs,
):  # fmt: skip
    """Attention as two matrix products in the inputs' type with an fp32 softmax between them; masks as for sdpa.

    On a CPU that multiplies bfloat16 in hardware torch's fused kernel falls behind it, most of all backwards.
    Returns (batch, length, heads, head size) and no weights.
    """
    groups = q_BHLK.shape[1] // k_BGMK.shape[1]
    k_BHMK, v_BHMK = k_BGMK.repeat_interleave(groups, dim=1), v_BGMK.repeat_interleave(groups, dim=1)
    scaling = q_BHLK.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BHLM = ((q_BHLK * scaling) @ k_BHMK.mT).float()
    L, M = scores_BHLM.shape[-2:]
    if position_bias is not None:
        scores_BHLM = scores_BHLM + position_bias
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if attention_mask is None and causal and L > 1:
        attention_mask = torch.ones(L, M, dtype=torch.bool, device=scores_BHLM.device).tril(M - L)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores_BHLM = scores_BHLM.masked_fill(~attention_mask, torch.finfo(torch.float32).min)
    elif attention_mask is not None:
        scores_BHLM = scores_BHLM + attention_mask.clamp(min=torch.finfo(torch.float32).min)
    weights_BHLM = nn.functional.dropout(scores_BHLM.softmax(dim=-1).to(v_BHMK.dtype), dropout)
    return (weights_BHLM @ v_BHMK).transpose(1, 2).contiguous(), None


AttentionInterface.register("matmul", matmul_attention)
AttentionMaskInterface.register("matmul", sdpa_mask)


def choose_attention(model: PreTrainedModel, device: torch.device, precision: str) -> str:
    """Give the model the kernel that is fastest where it runs, and return a line that says which and why.

    precision: `no` or `bf16`. A model that was given another kernel than sdpa keeps it.
    """
    has = model.config._attn_implementation
    if has != "sdpa":
        return f"attention: {has}, as the model has it"
    if device.type != "cpu" or precision != "bf16":
        return "attention: sdpa, transformers' own; packed rows give it a block mask, which flash kernels do not take"
    try:
        model.set_attn_implementation("matmul")
    except ValueError as error:
        return f"attention: sdpa ({' '.join(str(error).split())[:80]})"
    if model.config._attn_implementation != "matmul":
        return "attention: sdpa, which this model cannot change"
    return "attention: matmul, for bf16 on a CPU, where it is faster than sdpa"
