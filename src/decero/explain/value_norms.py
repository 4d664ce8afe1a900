"""Weigh attention with what it carries: Kobayashi et al. 2020 (arXiv:2004.10102), section 3.

A head adds sum over keys of (weight x value x output projection) to the residual stream. The norm of each summand says
how much of a key arrives. A key with a large weight and a small value, as a separator often is, brings little.
"""

import numpy as np
import torch
from torch import Tensor

from decero.explain.capture import AttentionCall

LINEAR = 1e-3  # of the largest number that the projection writes


def value_norms(calls: dict[int, AttentionCall]) -> tuple[dict[int, np.ndarray], str]:
    """Return layer -> norms (heads, queries, keys), float32. When they cannot be known: nothing, and why."""
    if not calls:
        return {}, "this family does not show its values"
    norms = {}
    for layer, call in calls.items():
        if call.projection is None:
            return {}, "between attention and output projection this family does something else"
        found = _norms(call)
        if found is None:
            return {}, "the sum over its heads is not its output"
        norms[layer] = found
    return norms, ""


@torch.no_grad()
def _norms(call: AttentionCall) -> np.ndarray | None:
    """Return weight x ||value x output projection|| of one layer, or None when they do not sum to its output."""
    assert call.projection is not None
    weights_HLM, mix_LHK = call.weights[0].float(), call.mix[0].float()
    H, K = mix_LHK.shape[1:]
    v_HMK = call.value[0].float().repeat_interleave(H // call.value.shape[1], dim=0)
    if v_HMK.shape[-1] != K:
        return None

    def project(x: Tensor) -> Tensor:
        return call.projection(x[None])[0].float()  # type: ignore[misc]

    bias_1D = project(mix_LHK.new_zeros(1, H * K))
    output_LD = bias_1D.expand(mix_LHK.shape[0], -1)
    norms_HM = []
    for head in range(H):
        alone_MHK = v_HMK.new_zeros(v_HMK.shape[1], H, K)
        alone_MHK[:, head] = v_HMK[head]
        carried_MD = project(alone_MHK.flatten(1)) - bias_1D
        norms_HM.append(carried_MD.norm(dim=-1))
        output_LD = output_LD + weights_HLM[head] @ carried_MD
    whole_LD = project(mix_LHK.flatten(1))
    if (output_LD - whole_LD).abs().max() > LINEAR * max(1e-6, float(whole_LD.abs().max())):
        return None
    return (weights_HLM * torch.stack(norms_HM)[:, None]).cpu().numpy()
