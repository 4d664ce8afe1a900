"""Follow attention through all layers, and look at it without the tokens that only collect it."""

from collections.abc import Collection

import numpy as np

from decero.errors import UserError
from decero.explain.recording import Attention

RESIDUAL = 0.5  # share of the residual connection: Abnar & Zuidema 2020, section 3


def rollout(attention: Attention, residual: float = RESIDUAL) -> np.ndarray:
    """Multiply the attention of all layers: Abnar & Zuidema 2020 (arXiv:2005.00928), eq. 1.

    Each layer is the mean of its heads, mixed with the residual connection: (1 - residual) A + residual I.
    Returns (layers, queries, keys), float64: after layer i, how much of token k is in the state of token q. Rows sum
    to 1.

    Raises UserError for attention to another text, which has no residual connection, and when a layer is missing.
    """
    if attention.kind == "cross":
        raise UserError("rollout follows one text through its layers; cross attention leads to another one")
    missing = sorted(set(range(attention.num_layers)) - set(attention.weights))
    if missing:
        raise UserError(f"rollout needs all {attention.num_layers} layers; layer {missing[0]} was not recorded")
    flow_LM = np.eye(len(attention.queries))
    flows = []
    for layer in range(attention.num_layers):
        mean_LM = attention.weights[layer].mean(axis=0, dtype=np.float64)
        mean_LM /= mean_LM.sum(axis=-1, keepdims=True)
        flow_LM = (1 - residual) * mean_LM @ flow_LM + residual * flow_LM
        flows.append(flow_LM)
    return np.stack(flows)


def sinks_of(attention: Attention) -> list[int]:
    """Return the keys that attention drains into: special tokens, and the first token of a causal model.

    A head that has nothing to say looks at them (Clark et al. 2019, section 3.2; Xiao et al. 2024, section 3.1).
    """
    special = {i for i, piece in enumerate(attention.keys) if piece.special}
    return sorted(special | ({0} if attention.kind == "causal" else set()))


def without_sinks(weights_HLM: np.ndarray, sinks: Collection[int]) -> np.ndarray:
    """Set the columns of `sinks` to zero, and divide each row by what is left.

    weights_HLM: (..., queries, keys). A row that sees nothing but sinks is all zero.
    """
    kept_HLM = np.array(weights_HLM)
    kept_HLM[..., list(sinks)] = 0
    sums_HL1 = kept_HLM.sum(axis=-1, keepdims=True)
    return np.divide(kept_HLM, sums_HL1, out=np.zeros_like(kept_HLM), where=sums_HL1 > 0)
