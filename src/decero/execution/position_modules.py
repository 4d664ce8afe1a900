"""Find how a model knows the order of its tokens, by asking its modules, not by its name.

What is asked lies inside transformers, so each family below has a test in tests/execution/test_position_modules.py.

    table       attributes named like `position_embeddings`, `embed_positions`, `wpe`     BERT, GPT-2, BART, Marian, ViT
    rotary      buffers named `inv_freq`; a table narrower than the hidden states         Llama, ModernBERT, GPT-J
    buckets     methods `compute_bias`, `compute_position_bias`                           T5, LongT5, UMT5, MPNet
    slopes      `build_alibi_tensor`, `build_mpt_alibi_tensor`                            BLOOM, MPT, Falcon
    ours        methods `rotary`, `bucket` and the modules of decero.models.embeddings    decero, remote code of ours
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

PositionKind = Literal["waves", "learned", "rotary", "buckets", "slopes"]
TABLE = re.compile(r"wpe|(absolute_)?pos(ition)?(al)?_embed\w*|embed_positions")


@dataclass(frozen=True)
class PositionSource:
    """What one stack of a model knows about positions.

    stack: `encoder` or `decoder` of an encoder-decoder; None for one stack alone, or when both have the same.
    path: the module that was asked.
    values: of `waves` and `learned` the table (positions, width), first row first; of `rotary` the angle in radians by
        which one step turns each pair of features, (pairs,); of `buckets` the bias (heads, distances), where distance
        is the key's position minus the query's; of `slopes` the number that each step back subtracts, (heads,).
    distances: of `buckets` only.
    """

    kind: PositionKind
    stack: Literal["encoder", "decoder"] | None
    path: str
    values: np.ndarray
    distances: np.ndarray | None = None


@torch.no_grad()
def find_positions(model: PreTrainedModel, length: int) -> list[PositionSource]:
    """Return what a model knows about `length` positions; an empty list when nothing known is found.

    Two sources of one kind with equal numbers (each layer holds a copy) are returned once.
    """
    found: list[PositionSource] = []
    finders = (_tables, _rotary, _buckets, _slopes)
    for path, module in model.named_modules():
        for finder in finders:
            for kind, name, values, distances in finder(model, module, length):
                source = PositionSource(kind, _stack(model, path), f"{path}.{name}".strip("."), values, distances)
                twin = next((i for i, other in enumerate(found) if _equal(source, other)), None)
                if twin is None:
                    found.append(source)
                elif found[twin].stack != source.stack:
                    found[twin] = replace(found[twin], stack=None)
    if any(source.kind == "slopes" for source in found):  # Falcon builds its rotary module in any case
        found = [source for source in found if source.kind != "rotary"]
    return found


Found = Iterator[tuple[PositionKind, str, np.ndarray, np.ndarray | None]]


def _stack(model: PreTrainedModel, path: str) -> Literal["encoder", "decoder"] | None:
    if not model.config.is_encoder_decoder:
        return None
    return "decoder" if "decoder" in path.split(".") else "encoder"


def _equal(one: PositionSource, other: PositionSource) -> bool:
    return (
        one.kind == other.kind and one.values.shape == other.values.shape and np.array_equal(one.values, other.values)
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def is_waves(table_LD: np.ndarray) -> bool:
    """Return whether a table holds sines and cosines: each pair of features lies on a circle."""
    return _halves(table_LD) is not None


def _halves(table_LD: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Split a table of waves into the sines and the cosines, (positions, pairs) each; None if it holds none."""
    width = table_LD.shape[1]
    if width % 2:
        return None
    for first, second in (
        (table_LD[:, : width // 2], table_LD[:, width // 2 :]),
        (table_LD[:, ::2], table_LD[:, 1::2]),
    ):
        if np.allclose(first**2 + second**2, 1.0, atol=1e-3):
            return first, second
    return None


def _turn(sine: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Return the angle between the first two positions, for each pair."""
    angle = np.arctan2(sine[:2].astype(np.float64), cosine[:2].astype(np.float64))
    return angle[1] - angle[0]


def _tables(model: PreTrainedModel, module: Any, length: int) -> Found:
    if hasattr(module, "interleaved"):  # ours: computed when used
        positions = torch.arange(length, device=model.device)[None]
        yield "waves", "", _numpy(module(positions)[0]), None
        return
    held = {**module._modules, **module._parameters, **module._buffers}
    for name, part in held.items():
        if not TABLE.fullmatch(name) or part is None:
            continue
        rows: Any = part if isinstance(part, torch.Tensor) else getattr(part, "weight", getattr(part, "weights", None))
        if not isinstance(rows, torch.Tensor) or rows.dim() not in (2, 3):
            continue
        rows = rows[0] if rows.dim() == 3 else rows
        first = _first_row(module, part)
        table_LD = _numpy(rows[first : first + length])
        halves = _halves(table_LD)
        if halves is None:
            yield "learned", name, table_LD, None
        elif table_LD.shape[1] == getattr(model.config.get_text_config(), "hidden_size", None):
            yield "waves", name, table_LD, None
        else:  # too narrow to be added to the hidden states: it turns the features of a head
            yield "rotary", name, _turn(*halves), None


def _first_row(parent: nn.Module, part: Any) -> int:
    """Return the row of a table that the first token reads: RoBERTa, BART and OPT leave two rows out."""
    for holder in (part, parent):
        if isinstance(offset := getattr(holder, "offset", None), int):
            return offset
    padding = getattr(part, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _rotary(model: PreTrainedModel, module: Any, length: int) -> Found:
    if getattr(model.config, "position_embedding_type", None) == "rotary" and hasattr(module, "rotary"):
        for kind, (cos_1L1K, sin_1L1K) in module.rotary(
            torch.arange(2, device=model.device)[None], torch.float32
        ).items():
            half = cos_1L1K.shape[-1] // 2
            yield "rotary", kind, _turn(_numpy(sin_1L1K[0, 0, :, :half]), _numpy(cos_1L1K[0, 0, :, :half])), None
    for name, buffer in module._buffers.items():
        if name.endswith("inv_freq") and "original" not in name and buffer is not None:
            yield "rotary", name, _numpy(buffer).astype(np.float64), None


def _buckets(model: PreTrainedModel, module: Any, length: int) -> Found:
    distances = np.arange(1 - length, length)
    causal = bool(getattr(module, "is_causal", getattr(module, "is_decoder", False)))
    if hasattr(module, "bucket") and isinstance(module, nn.Embedding):  # ours
        bias_HD = _numpy(module(torch.from_numpy(distances)[None].to(model.device))[0, :, 0])
    elif hasattr(module, "compute_position_bias"):
        hidden_BLD = torch.zeros(1, length, 1, device=model.device)
        bias_HD = _by_distance(module.compute_position_bias(hidden_BLD)[0])
    elif isinstance(getattr(module, "relative_attention_bias", None), nn.Embedding) and hasattr(module, "compute_bias"):
        if "block_length" in inspect.signature(module.compute_bias).parameters:  # LongT5: three blocks around the query
            around_HM = module.compute_bias(length)[0, 0, :, 0]
            bias_HD = _numpy(around_HM[:, 1 : 2 * length])
        else:
            bias_HD = _by_distance(module.compute_bias(length, length)[0])
    else:
        return
    seen = distances <= 0 if causal else distances == distances
    yield "buckets", "", bias_HD[:, seen], distances[seen]


def _by_distance(bias_HLM: torch.Tensor) -> np.ndarray:
    """Reduce (heads, length, length) to (heads, 2 x length - 1): the last row, then the first."""
    return _numpy(torch.cat([bias_HLM[:, -1, :], bias_HLM[:, 0, 1:]], dim=-1))


def _slopes(model: PreTrainedModel, module: Any, length: int) -> Found:
    scale = 1.0
    if hasattr(module, "build_mpt_alibi_tensor"):
        heads = module.config.num_attention_heads
        bias = module.build_mpt_alibi_tensor(heads, 2, module.config.attn_config.alibi_bias_max)
    else:
        build = getattr(module, "build_alibi_tensor", None)
        if build is None and getattr(module, "use_alibi", False):  # Falcon scales the bias with the scores
            build = getattr(sys.modules[type(module).__module__], "build_alibi_tensor", None)
            scale = (module.config.hidden_size // module.config.num_attention_heads) ** -0.5
        if build is None:
            return
        heads = module.config.num_attention_heads
        bias = build(torch.ones(1, 2, device=model.device), heads, torch.float32)
    bias_H2 = bias.reshape(heads, 2)
    yield "slopes", "", _numpy(bias_H2[:, 1] - bias_H2[:, 0]) * scale, None
