"""Move scales of ours into the weights, for stock classes that have none.

The outputs stay the same up to rounding, and exactly where the scale is a power of two.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def fold_config(ours: Any) -> Any:
    """Return the configuration of the same model as T5 has it: attention and embeddings are not scaled.

    A tied head of T5 divides by the root of the width instead (`scale_lm_head`), which undoes the scale of its weights.
    """
    changes: dict[str, bool] = {}
    if ours.scale_attn_weights:
        changes["scale_attn_weights"] = False
    tied = ours.tie_word_embeddings and hasattr(ours, "scale_lm_head")  # an encoder alone has no such head
    if ours.scale_embeddings and not (tied and ours.scale_lm_head):
        changes |= {"scale_embeddings": False} | ({"scale_lm_head": True} if tied else {})
    if not changes:
        return ours
    folded = copy.deepcopy(ours)
    for name, value in changes.items():
        setattr(folded, name, value)
    return folded


def fold_tensors(ours: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights for `fold_config(ours)`: queries / sqrt(head size), embeddings x sqrt(width)."""
    folded = fold_config(ours)
    root = math.sqrt(ours.hidden_size)
    attention = ours.scale_attn_weights != folded.scale_attn_weights
    embeddings = ours.scale_embeddings != folded.scale_embeddings
    tied = ("lm_head.weight",) if ours.tie_word_embeddings else ()

    tables: dict[int, Tensor] = {}  # tied names share one tensor, here and in the result
    found = {}
    for name, tensor in tensors.items():
        if attention and name.endswith("attn.q_proj.weight"):
            tensor = tensor / math.sqrt(ours.head_dim)
        elif embeddings and name.endswith(("embed_tokens.weight", *tied)):
            tensor = tables.setdefault(tensor.data_ptr(), tensor * root)
        found[name] = tensor
    return found
