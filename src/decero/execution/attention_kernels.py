"""Choose the attention kernel of a run, for any model that uses transformers' attention interface."""

import inspect
from contextlib import suppress

import torch
from torch import nn
from transformers import PreTrainedModel

from decero.execution.dropout import draw_fewer_bits, sixteen_bit_dropout
from decero.execution.flex_attention import FLEX, LONG_ROW, trial, unsupported_feature
from decero.execution.precision import cpu_computes_bf16
from decero.execution.transformers_internals import attention_of, register_attention, supports

UNAVAILABLE = (ValueError, ImportError, OSError, RuntimeError)
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
WAS_REQUESTED = "was requested"  # in the line of `choose_attention` when a requested kernel is not used


def matmul_attention(
    module: nn.Module, q_BHLK, k_BGMK, v_BGMK, attention_mask=None, *, scaling=None, dropout=0.0, is_causal=None,
    position_bias=None, **kwargs,
):  # fmt: skip
    """Compute attention as two matrix products in the input type, with an fp32 softmax between them.

    q_BHLK: (batch, heads, length, head size). k_BGMK, v_BGMK: (batch, key heads, memory, head size). Masks as for sdpa.
    Returns (batch, length, heads, head size), and None for the weights. On CPUs with bf16 hardware this is faster than
    torch's fused kernel, above all in the backward pass.
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
        scores_BHLM = scores_BHLM + attention_mask.float().clamp(min=torch.finfo(torch.float32).min)
    weights_BHLM = scores_BHLM.softmax(dim=-1).to(v_BHMK.dtype)
    if dropout:
        weights_BHLM = sixteen_bit_dropout(weights_BHLM, dropout)
    return (weights_BHLM @ v_BHMK).transpose(1, 2).contiguous(), None


register_attention("matmul", matmul_attention)


def choose_attention(
    model: PreTrainedModel, device: torch.device, precision: str, row: int = 0, requested: str | None = None
) -> str:
    """Give the model the fastest kernel for its device; return a line that says which one and why.

    precision: `no` or `bf16`. row: tokens in a packed row, 0 for padded rows. requested: the setting
    `model.attn_implementation`. A requested kernel, or one that the model already has, is kept if device and model
    support it. Otherwise another is used, and the line says why. On a CPU, dropout becomes faster, too.
    """
    if device.type == "cpu":
        draw_fewer_bits(model)
    current = attention_of(model)
    requested = requested or (current if "flash" in current or "flex" in current else None)
    emulated = device.type == "cpu" and precision == "bf16" and cpu_computes_bf16() is False
    warning = "; this CPU emulates bf16, which is slower than fp32" if emulated else ""
    if requested is None:
        return _set_fastest(model, device, precision, row) + warning
    why = _set_requested(model, requested, device, precision, row)
    if why is None:
        now = attention_of(model)
        both = f" ({requested} for packed rows, sdpa for padded ones)" if now == FLEX else ""
        return f"attention: {now}{both}, as requested{warning}"
    if "flash" in current or "flex" in current:
        _set_kernel(model, "sdpa" if supports(model, "sdpa") else "eager")
    return f"{_set_fastest(model, device, precision, row=0)}; {requested} {WAS_REQUESTED}, but {why}{warning}"


def _set_fastest(model: PreTrainedModel, device: torch.device, precision: str, row: int) -> str:
    current = attention_of(model)
    if current != "sdpa":
        return f"attention: {current}, from the model's config"
    if device.type == "cpu" and precision == "bf16":
        if why := _set_kernel(model, "matmul"):
            return f"attention: sdpa ({why})"
        return "attention: matmul, faster than sdpa for bf16 on a CPU"
    if device.type == "cuda" and row:
        why = _no_gain_from_flex(model, row) or unsupported_feature(model)
        why = why or trial(model, device, DTYPES[precision], row)
        if why is None and (why := _set_kernel(model, FLEX)) is None:
            return "attention: flex (skips blocks of packed rows that share no text), sdpa for padded rows"
        return f"attention: sdpa, with a block mask for packed rows; flex_attention is not used: {why}"
    why = "; packed rows need a block mask, which flash kernels do not support" if row else ""
    return f"attention: sdpa{why}"


def _no_gain_from_flex(model: PreTrainedModel, row: int) -> str | None:
    """Return why FlexAttention, if not requested, is not worth trying; else None."""
    if row < LONG_ROW:
        return f"rows of {row} tokens have few blocks to skip"
    # With `selected_positions` the last layer selects rows of a dense mask. This is known to save most of a layer; what
    # skipping blocks would save instead was not measured.
    if "selected_positions" in inspect.signature(model.forward).parameters:
        return "the last layer computes only scored positions, which needs a dense mask"
    return None


def _set_requested(model: PreTrainedModel, name: str, device: torch.device, precision: str, row: int) -> str | None:
    """Set the requested kernel, or return why device or model does not support it.

    FlexAttention for rows that are not packed is transformers' own.
    """
    if "flash" in name:
        if device.type == "cpu":
            return "it does not run on a CPU"
        if precision != "bf16":
            return "it needs training.mixed_precision=bf16"
    elif "flex" in name:
        if why := unsupported_feature(model) or trial(model, device, DTYPES[precision], row or LONG_ROW):
            return why
        name = FLEX if row else name
    return _set_kernel(model, name)


def _set_kernel(model: PreTrainedModel, name: str) -> str | None:
    """Set a kernel. If it is not available, leave the model unchanged and return why."""
    before = attention_of(model)
    try:
        model.set_attn_implementation(name)
    except UNAVAILABLE as error:
        with suppress(*UNAVAILABLE):  # the outer model may have changed before an inner one failed
            model.set_attn_implementation(before)
        return " ".join(str(error).split())[:200]
    now = attention_of(model)
    is_set = now == name or (name.startswith("flash") and "flash" in now)  # the kernels package uses other names
    return None if is_set else "this model cannot change its attention"
