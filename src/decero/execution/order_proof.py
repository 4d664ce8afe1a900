"""Prove that a model keeps to an order of prediction: no target sees itself or a later one, and all see the earlier."""

import inspect
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decero.data.permutation import add_queries, stack_ordered, two_streams
from decero.execution.packed_forward import NOT_ACCEPTED, logits_of
from decero.execution.unwrap import unwrap

LENGTH, TARGETS = 13, np.array([8, 2, 11, 3, 6])


def takes_target_mapping(forward: Any) -> bool:
    """Return whether a forward pass has two streams of its own, as that of `XLNetLMHeadModel`."""
    return "target_mapping" in inspect.signature(forward).parameters


@torch.no_grad()
def prove_order(model: nn.Module) -> str | None:
    """Check a model on one text of 13 tokens with 5 targets. Return None, or what is wrong with it.

    Another token at target k must change the predictions of the targets after it, and of no others: 10 dependencies.
    Another token that is no target must change all predictions. And the model must take positions from
    `position_ids`: other positions must change the predictions, and moving all tokens within the row must not.

    Runs in fp32 without dropout, on a copy with large random matrices: with those of an untrained model a wrong
    distance would change too little.
    """
    bare: Any = deepcopy(unwrap(model)).eval()
    _redraw(bare)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(next(bare.parameters()).device.type, enabled=False):
            return _what_is_wrong(bare)
    except NOT_ACCEPTED as error:
        return f"it does not accept such rows ({' '.join(str(error).split())[:120]})"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _redraw(bare: nn.Module) -> None:
    """Draw each matrix with a variance of one over its width, so that all parts of a layer have an effect."""
    generator = torch.Generator().manual_seed(3)
    for parameter in bare.parameters():
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
            parameter.copy_(drawn.to(parameter))


def _what_is_wrong(bare: Any) -> str | None:
    vocabulary, T = bare.get_input_embeddings().weight.shape[0], len(TARGETS)
    draw = np.random.default_rng(3)
    ids_L = draw.integers(0, vocabulary, LENGTH)
    texts_BL = np.tile(ids_L, (T + 2, 1))  # as it is, with another token at each target, and at a place that is none
    for row, place in enumerate([*TARGETS, 5], start=1):
        texts_BL[row, place] = (ids_L[place] + draw.integers(1, vocabulary)) % vocabulary
    in_order_T = TARGETS.argsort().argsort()  # queries are in the order of positions
    streams = takes_target_mapping(bare.forward)
    if streams:
        batch = two_streams([(text, TARGETS) for text in texts_BL], pad_id=0)
    else:
        batch = stack_ordered([add_queries(text, TARGETS, query_id=0) for text in texts_BL], pad_id=0)
    device = next(bare.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    logits_BTV = _predictions(bare, batch, streams)[:, in_order_T]
    scale = float(logits_BTV.abs().max())
    effect_BT = (logits_BTV[1:] - logits_BTV[:1]).abs().amax(dim=-1)
    later_TT = torch.ones(T, T, dtype=torch.bool, device=device).triu(1)
    leak = effect_BT[:T][~later_TT].max()
    if leak > 1e-6 * scale:
        return "a target sees itself or a later target"
    if not (effect_BT[:T][later_TT] > leak).all():
        return "a target does not see the targets before it"
    if not (effect_BT[T] > leak).all():
        return "a target does not see the text"
    if streams:
        return None
    moved_L = torch.randperm(batch["input_ids"].shape[1], generator=torch.Generator().manual_seed(3)).to(device)
    moved = {name: tensor[:, moved_L] for name, tensor in batch.items()}
    back_L = moved_L.argsort()
    difference = (_predictions(bare, moved, streams, back_L)[:, in_order_T] - logits_BTV).abs().max()
    if difference > 1e-4 * scale:
        return "it does not take positions from position_ids"
    shuffled_P = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3)).to(device)
    elsewhere = batch | {"position_ids": shuffled_P[batch["position_ids"]]}
    if (_predictions(bare, elsewhere, streams)[:, in_order_T] - logits_BTV).abs().max() <= 1e-6 * scale:
        return "it has no positions, so it cannot know which target to predict"
    return None


def _predictions(bare: Any, batch: dict[str, Tensor], streams: bool, back_L: Tensor | None = None) -> Tensor:
    """Return the logits of the queries by position, (texts, targets, vocabulary). back_L: undo a move of the tokens."""
    logits_BLV = logits_of(bare, batch).float()
    logits_BLV = logits_BLV if back_L is None else logits_BLV[:, back_L]
    return logits_BLV if streams else logits_BLV[:, LENGTH:]
