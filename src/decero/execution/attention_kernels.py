"""Which attention kernel a run takes, and why: any model that goes through transformers' attention interface."""

import inspect
import platform
from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from decero.execution.flex_attention import FLEX, LONG_ROW, trial, unfit
from decero.execution.transformers_internals import attention_of, register_attention, supports

UNAVAILABLE = (ValueError, ImportError, OSError, RuntimeError)
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


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
    weights_BHLM = scores_BHLM.softmax(dim=-1).to(v_BHMK.dtype)
    if dropout:
        weights_BHLM, scale = drop(weights_BHLM, dropout)
        v_BHMK = v_BHMK * scale
    return (weights_BHLM @ v_BHMK).transpose(1, 2).contiguous(), None


def drop(x: Tensor, p: float) -> tuple[Tensor, float]:
    """`x` with a share `p` of its elements zero, rounded to a 65,536th, and what the others are to be multiplied by.

    On a CPU `F.dropout` draws a number for each element, one after the other, where sixteen bits tell as much: it took
    three times as long on 1.6 M of them.
    """
    cut = min(round(p * 2**16), 2**16 - 1)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    gone = bits.view(torch.int16)[: x.numel()].view(x.shape) < cut - 2**15
    return x.masked_fill(gone, 0), 2**16 / (2**16 - cut)


register_attention("matmul", matmul_attention)


def choose_attention(model: PreTrainedModel, device: torch.device, precision: str, row: int = 0) -> str:
    """Give the model the kernel that is fastest where it runs, and return a line that says which and why.

    precision: `no` or `bf16`. row: tokens of a packed row, 0 where rows are padded. A kernel that was asked for
    (`model.attn_implementation`), or that the model was given, is kept where the device serves it; the line says where
    it does not, and which one is taken instead.
    """
    asked, has = getattr(model, "attention_asked", None), attention_of(model)
    asked = asked or (has if "flash" in has or "flex" in has else None)
    emulated = _emulated() if device.type == "cpu" and precision == "bf16" else ""
    if asked is None:
        return _fastest(model, device, precision, row) + emulated
    why = _serve(model, asked, device, precision, row)
    if why is None:
        now = attention_of(model)
        both = f", which is {asked} for packed rows and sdpa for others" if now == FLEX else ""
        return f"attention: {now}{both}, as asked{emulated}"
    if "flash" in has or "flex" in has:
        _give(model, "sdpa" if supports(model, "sdpa") else "eager")
    return f"{_fastest(model, device, precision, row=0)}; {asked} was asked for, but {why}{emulated}"


def _fastest(model: PreTrainedModel, device: torch.device, precision: str, row: int) -> str:
    has = attention_of(model)
    if has != "sdpa":
        return f"attention: {has}, as the model has it"
    if device.type == "cpu" and precision == "bf16":
        if why := _give(model, "matmul"):
            return f"attention: sdpa ({why})"
        return "attention: matmul, for bf16 on a CPU, where it is faster than sdpa"
    if device.type == "cuda" and row:
        why = _not_worth(model, row) or unfit(model) or trial(model, device, DTYPES[precision], row)
        if why is None and (why := _give(model, FLEX)) is None:
            return "attention: flex, which skips blocks of packed rows that share no text; sdpa where rows are padded"
        return f"attention: sdpa; packed rows give it a block mask, for flex_attention was not taken: {why}"
    return "attention: sdpa, transformers' own; packed rows give it a block mask, which flash kernels do not take"


def _not_worth(model: PreTrainedModel, row: int) -> str | None:
    """Why FlexAttention is left alone where nobody asked for it, though it may be able."""
    if row < LONG_ROW:
        return f"rows of {row} tokens have few blocks to skip"
    # The last layer of these (`selected_positions`) picks its rows out of a dense mask. That this saves most of a layer
    # is known; what skipping blocks would save instead is not.
    if "selected_positions" in inspect.signature(model.forward).parameters:
        return "the last layer can compute scored positions alone, with a dense mask"
    return None


def _serve(model: PreTrainedModel, asked: str, device: torch.device, precision: str, row: int) -> str | None:
    """Give the model the kernel that was asked for; or return why device or model cannot serve it.

    FlexAttention for rows that are not packed stays transformers' own.
    """
    if "flash" in asked:
        if device.type == "cpu":
            return "it has no kernel for a CPU"
        if precision != "bf16":
            return "it computes in bf16, and mixed_precision is no"
    elif "flex" in asked:
        if why := unfit(model) or trial(model, device, DTYPES[precision], row or LONG_ROW):
            return why
        asked = FLEX if row else asked
    return _give(model, asked)


def _give(model: PreTrainedModel, name: str) -> str | None:
    """Set a kernel; or leave the model as it was and return why it, or what is installed, does not have this one."""
    before = attention_of(model)
    try:
        model.set_attn_implementation(name)
    except UNAVAILABLE as error:
        with suppress(*UNAVAILABLE):  # its outer part may have changed before an inner one refused
            model.set_attn_implementation(before)
        return " ".join(str(error).split())[:200]
    has = attention_of(model)
    served = has == name or (name.startswith("flash") and "flash" in has)  # of the kernels package, by another name
    return None if served else "this model cannot change its attention"


def _emulated() -> str:
    """What to say where matrix products in bf16 are not the processor's own; nothing where that cannot be told."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    elif machine in ("aarch64", "arm64") and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        has = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # on x86 it says yes to emulation as well
    else:
        return ""
    return "" if has else "; this CPU has no bf16 products of its own: they are emulated, slower than fp32"
