"""Fuse the vocabulary projection with the cross-entropy: the full logits of a batch are never in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor


def items_at_once(device: torch.device) -> int:
    """Return how many items are projected at a time. A GPU needs more to be busy, and has the memory."""
    return 512 if device.type == "cpu" else 4096


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, chunk: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Sum the cross-entropy of hidden_ND @ weight_VD.T + bias_V against labels_N, in nats.

    hidden_ND: (items, width). weight_VD: (vocabulary, width). labels_N: (items,). label_smoothing: the share of the
    target that is spread evenly over the vocabulary (Vaswani et al. 2017, section 5.4).

    `chunk` items (`items_at_once` by default) are projected at a time, and their gradient (softmax minus one-hot) is
    computed in the same step. So memory is chunk x V instead of N x V, and nothing is computed twice: Hsu et al. 2024
    (Liger), section 3.2. Products run in autocast's type if it is on, the softmax in fp32. In fp32 on a CPU torch's own
    chunks are faster, where it has them: docs/experiments/speed.md.
    """
    if not label_smoothing and _torch_is_faster(hidden_ND, weight_VD):
        chunks = torch.nn.LinearCrossEntropyOptions(  # type: ignore[attr-defined]
            chunking_method=None, batch_chunk_size=chunk or items_at_once(hidden_ND.device)
        )
        return F.linear_cross_entropy(  # type: ignore[attr-defined]
            hidden_ND, weight_VD, labels_N, linear_bias=bias_V, reduction="sum", options=chunks
        )
    return _apply(hidden_ND, weight_VD, bias_V, labels_N, chunk, label_smoothing, None)[0]


def _torch_is_faster(hidden_ND: Tensor, weight_VD: Tensor) -> bool:
    """Tell whether torch has a chunked loss, and it is the faster one: with gradients, in fp32, on a CPU."""
    plain = hidden_ND.dtype == weight_VD.dtype == torch.float32 and hidden_ND.device.type == "cpu"
    there = hasattr(torch.nn, "LinearCrossEntropyOptions")
    return there and plain and len(hidden_ND) > 0 and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def sampled_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, draws_N: Tensor,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what `linear_cross_entropy` does, and for each item an id drawn from the softmax, (items,).

    draws_N: uniform numbers in [0, 1), see `sample_ids`. The ids have no gradient.
    """
    return _apply(hidden_ND, weight_VD, bias_V, labels_N, chunk, 0.0, draws_N)


def _apply(hidden_ND, weight_VD, bias_V, labels_N, chunk, label_smoothing, draws_N):
    if not torch.is_grad_enabled():  # else autograd.Function would still compute the gradients of parameters
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    chunk = chunk or items_at_once(hidden_ND.device)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N, chunk, label_smoothing, draws_N)


def sample_ids(probabilities_NV: Tensor, draws_N: Tensor) -> Tensor:
    """Draw an id for each item: the first whose cumulative probability exceeds its uniform number, (items,)."""
    sums_NV = probabilities_NV.cumsum(dim=-1)
    wanted_N1 = draws_N[:, None] * sums_NV[:, -1:]  # the sum may be a little less than 1
    return torch.searchsorted(sums_NV, wanted_N1, right=True)[:, 0].clamp(max=sums_NV.shape[-1] - 1)


def vocabulary_multiple(device: torch.device) -> int:
    """Return what the vocabulary is rounded up to: 64 on a GPU."""
    return 1 if device.type == "cpu" else 64


def aligned(weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias in `dtype`, with a vocabulary that is a multiple of `vocabulary_multiple`.

    The added entries have probability 0. An odd vocabulary, such as GPT-2's 50,257, keeps tensor cores from reading in
    blocks: on an H100 the three products took 63 instead of about 11 ms for 32,768 tokens.
    """
    missing = -len(weight_VD) % vocabulary_multiple(weight_VD.device)
    if not missing:
        return weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
    weight, bias = (
        weight_VD.new_zeros(len(weight_VD) + missing, *rest, dtype=dtype) for rest in (weight_VD.shape[1:], ())
    )
    weight[:-missing], bias[-missing:] = weight_VD, float("-inf")
    if bias_V is not None:
        bias[:-missing] = bias_V
    return weight, bias


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, chunk, smoothing, draws_N):
        device, V = hidden_ND.device.type, len(weight_VD)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        with torch.autocast(device, enabled=False):
            hidden = hidden_ND.to(dtype)
            weight, bias = aligned(weight_VD, bias_V, dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
            drawn_N = torch.empty_like(labels_N) if draws_N is not None else None
            needed = ctx.needs_input_grad
            d_hidden = torch.empty_like(hidden) if needed[0] else None
            d_weight = torch.zeros_like(weight_VD) if needed[1] else None
            d_bias = torch.zeros_like(bias_V) if bias_V is not None and needed[2] else None
            for start in range(0, len(labels_N), chunk):
                part = slice(start, start + chunk)
                labels_C1 = labels_N[part, None]
                log_p_CV = F.linear(hidden[part], weight, bias).log_softmax(dim=-1, dtype=torch.float32)
                target_C1 = log_p_CV.gather(1, labels_C1)
                total -= (1 - smoothing) * target_C1.sum()
                if drawn_N is not None:
                    drawn_N[part] = sample_ids(log_p_CV[:, :V].exp(), draws_N[part])
                if smoothing:
                    total -= smoothing * log_p_CV[:, :V].mean(dim=-1).sum()
                if d_hidden is None and d_weight is None:
                    continue
                d_target_C1 = target_C1.exp() - (1 - smoothing) - smoothing / V  # in fp32: near 0 for a sure model
                if smoothing or device == "cpu":
                    d_logits_CV = log_p_CV.exp_()
                    if smoothing:
                        d_logits_CV[:, :V] -= smoothing / V
                else:  # one pass instead of two
                    d_logits_CV = torch.exp(log_p_CV, out=torch.empty_like(log_p_CV, dtype=dtype))
                d_logits_CV.scatter_(1, labels_C1, d_target_C1.to(d_logits_CV.dtype))
                if d_bias is not None:
                    d_bias += d_logits_CV[:, :V].sum(dim=0, dtype=d_bias.dtype)
                d_logits_CV = d_logits_CV.to(dtype)
                if d_hidden is not None:
                    d_hidden[part] = d_logits_CV @ weight
                if d_weight is not None:
                    d_weight += (d_logits_CV.T @ hidden[part])[:V]
                del log_p_CV, d_logits_CV  # before the next chunk, which needs as much
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.hidden_dtype = hidden_ND.dtype
        if drawn_N is not None:
            ctx.mark_non_differentiable(drawn_N)
        return total, drawn_N

    @staticmethod
    def backward(ctx, d_total, _):
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        grads = [None if d is None else d * d_total.to(d.dtype) for d in (d_hidden, d_weight, d_bias)]
        if grads[0] is not None:
            grads[0] = grads[0].to(ctx.hidden_dtype)
        return *grads, None, None, None, None
