"""Time the attention kernels for packed rows on a GPU, and compare each with sdpa in fp32.

Dimensions: B rows, L length, H heads, K head size.
"""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decero.benchmark.measure import synchronize
from decero.errors import root_line
from decero.execution.attention_kernels import matmul_attention
from decero.execution.flex_attention import document_mask, flex_or_sdpa

TOKENS = 65_536
HEADS, HEAD_SIZE = 12, 64  # of BERT-base and GPT-2 small
Shape = tuple[int, int, bool]  # length of a row, texts in a row, causal
SHAPES: tuple[Shape, ...] = ((512, 2, False), (2048, 8, False), (2048, 8, True))


def packed_kernels(
    device: torch.device, shapes: tuple[Shape, ...] = SHAPES, tokens: int = TOKENS, repeats: int = 10
) -> list[dict[str, Any]]:
    """Run each kernel on the same packed rows in bf16; return one record a shape and kernel.

    kernel, length, texts, causal; milliseconds: of a forward and backward pass; error: largest relative error of output
    and gradients; failed: why the kernel does not run here. `unmasked` computes another thing, attention across texts:
    it shows what the masks cost.
    """
    records = []
    for length, texts, causal in shapes:
        draw = torch.Generator().manual_seed(length)
        B = max(1, tokens // length)
        q, k, v, grad = (
            torch.randn(B, length, HEADS, HEAD_SIZE, generator=draw).to(device, torch.bfloat16) for _ in range(4)
        )
        text_BL = (torch.arange(length) * texts // length + 1).expand(B, -1).to(device)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        expected = _results(
            _dense(text_BL, causal), [x.detach()[:2].float().requires_grad_() for x in inputs], grad[:2]
        )
        for name, kernel in kernels(text_BL, causal, device).items():
            record: dict[str, Any] = {"kernel": name, "length": length, "texts": texts, "causal": causal}
            try:
                got = _results(kernel, inputs, grad)
                errors = [float((a[:2].float() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]
                record |= {"milliseconds": _milliseconds(kernel, inputs, grad, device, repeats)}
                record |= {} if name == "unmasked" else {"error": max(errors)}
            except Exception as error:  # each kernel and compiler has its own exceptions
                record["failed"] = root_line(error)[:120]
            records.append(record)
    return records


def kernels(text_BL: Tensor, causal: bool, device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """Return the kernels by name: (q, k, v), each (B, L, H, K), -> (B, L, H, K)."""
    found: dict[str, Callable[..., Tensor]] = {"unmasked": _dense(None, causal), "sdpa": _dense(text_BL, causal)}
    if device.type == "cpu":
        mask = _mask(text_BL, causal)

        def matmul(q, k, v):
            q_BHLK, k_BHLK, v_BHLK = by_head(q, k, v)
            return matmul_attention(nn.Identity(), q_BHLK, k_BHLK, v_BHLK, mask)[0]

        return found | {"matmul": matmul}
    block = document_mask(text_BL, text_BL, causal)

    def flex(q, k, v):
        q_BHLK, k_BHLK, v_BHLK = by_head(q, k, v)
        return flex_or_sdpa(nn.Identity(), q_BHLK, k_BHLK, v_BHLK, block)[0]

    return found | {"flex": flex, "varlen": _varlen(text_BL, causal)}


def by_head(*heads_BLHK: Tensor) -> list[Tensor]:
    """Return the tensors as (B, H, L, K)."""
    return [x.transpose(1, 2) for x in heads_BLHK]


def _mask(text_BL: Tensor, causal: bool) -> Tensor:
    same_B1LL = (text_BL[:, :, None] == text_BL[:, None, :]).unsqueeze(1)
    return same_B1LL.tril() if causal else same_B1LL


def _dense(text_BL: Tensor | None, causal: bool) -> Callable[..., Tensor]:
    mask = None if text_BL is None else _mask(text_BL, causal)

    def run(q, k, v):
        q_BHLK, k_BHLK, v_BHLK = by_head(q, k, v)
        own = None if mask is None else mask[: len(q)]
        mix_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, own, is_causal=causal and own is None)
        return mix_BHLK.transpose(1, 2)

    return run


def _varlen(text_BL: Tensor, causal: bool) -> Callable[..., Tensor]:
    """Run torch's varlen_attn (2.10 and later): flash attention over the texts one after the other, without a mask."""
    from torch.nn.attention.varlen import varlen_attn

    first_BL = torch.ones_like(text_BL, dtype=torch.bool)
    first_BL[:, 1:] = text_BL[:, 1:] != text_BL[:, :-1]
    starts = first_BL.flatten().nonzero()[:, 0].to(torch.int32)
    ends = F.pad(starts, (0, 1), value=text_BL.numel())
    longest = int(ends.diff().max())
    backwards: dict[str, Any] = {}
    if causal:
        old = "is_causal" in inspect.signature(varlen_attn).parameters
        backwards = {"is_causal": True} if old else {"window_size": (-1, 0)}

    def run(q, k, v):
        q_NHK, k_NHK, v_NHK = (x.flatten(0, 1) for x in (q, k, v))
        mix_NHK: Any = varlen_attn(q_NHK, k_NHK, v_NHK, ends, ends, longest, longest, **backwards)
        return mix_NHK.view_as(q)

    return run


def _results(kernel: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = kernel(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def _milliseconds(kernel, inputs: list[Tensor], grad: Tensor, device: torch.device, repeats: int) -> float:
    for _ in range(2):
        _results(kernel, inputs, grad)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        _results(kernel, inputs, grad)
    synchronize(device)
    return 1e3 * (time.perf_counter() - started) / repeats


def kernel_table(records: list[dict[str, Any]]) -> str:
    """Return a Markdown table: one row a kernel and shape."""
    lines = ["| packed rows | kernel | forward + backward | over sdpa | error |", "|:--|:--|--:|--:|--:|"]
    base = {(r["length"], r["causal"]): r.get("milliseconds") for r in records if r["kernel"] == "sdpa"}
    for r in records:
        rows = f"{r['length']} tokens, {r['texts']} texts{', causal' if r['causal'] else ''}"
        if "failed" in r:
            lines.append(f"| {rows} | {r['kernel']} | does not run: {r['failed']} | | |".replace("\n", " "))
            continue
        sdpa = base[r["length"], r["causal"]]
        ratio = f"{sdpa / r['milliseconds']:.2f}" if sdpa else "–"
        error = f"{r['error']:.4f}" if "error" in r else "–"
        lines.append(f"| {rows} | {r['kernel']} | {r['milliseconds']:.2f} ms | {ratio} | {error} |")
    return "\n".join(lines)
