"""Fill the holes of a text with a masked language model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from decero.data.permutation import holes_mapped, holes_unseen
from decero.errors import UserError
from decero.execution.objective import scored_logits
from decero.execution.order_proof import takes_target_mapping
from decero.execution.packed_forward import logits_of
from decero.execution.pretraining_objective import PERMUTATION, objective_of
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn, checked_texts
from decero.inference.generation import silent
from decero.inference.loading import Loaded, load
from decero.inference.scoring import TOKENS_PER_BATCH, Batch, scored

Candidates = list[tuple[str, float]]
MASKS = ("[MASK]", "<mask>")  # both work with any tokenizer


@dataclass(frozen=True)
class Filled:
    """Hold a filled text.

    text: every hole filled with its likeliest token. holes: per hole its likeliest tokens and probabilities.
    """

    text: str
    holes: list[Candidates]


def fill(
    model: str | Path | Loaded, texts: Iterable[str], *, top_k: int = 5, batch_tokens: int = TOKENS_PER_BATCH,
    too_long: TooLong = "split", warn: Warn = silent, first_window: int = FIRST_WINDOW,
) -> Iterator[Filled]:  # fmt: skip
    """Fill the holes of each text, in order.

    A hole is [MASK] or <mask> and stands for one token.
    Each hole is predicted separately, with all other holes left open. A text without a hole is returned unchanged.
    Raises UserError as `load` does, and for a tokenizer without a mask token.
    """
    loaded = load(model, "fill")
    if loaded.tokenizer.mask_token is None:
        raise UserError(f"{loaded.name}: the tokenizer has no mask token; use a masked language model")
    return _fill(loaded, texts, top_k, batch_tokens, too_long, warn, first_window)


def _fill(loaded: Loaded, texts, top_k, batch_tokens, too_long, warn, first_window) -> Iterator[Filled]:
    tokenizer, mask = loaded.tokenizer, str(loaded.tokenizer.mask_token)
    known = torch.tensor(sorted(tokenizer.get_vocab().values()))

    def read_out(model: PreTrainedModel, batch: Batch) -> list[list[list[tuple[int, float]]]]:
        hole_BL = batch["input_ids"] == tokenizer.mask_token_id
        found: list[list[list[tuple[int, float]]]] = [[] for _ in hole_BL]
        if not hole_BL.any():
            return found
        logits_NV = _hole_logits(model, batch, hole_BL)
        ids = known[known < logits_NV.shape[-1]].to(logits_NV.device)  # a model may have more rows than tokens
        best = logits_NV[:, ids].softmax(dim=-1).topk(min(top_k, len(ids)))
        rows = hole_BL.nonzero()[:, 0].tolist()
        for row, tokens, probabilities in zip(rows, ids[best.indices].tolist(), best.values.tolist(), strict=True):
            found[row].append(list(zip(tokens, probabilities, strict=True)))
        return found

    def own_masks(text: str) -> str:
        for name in MASKS:
            text = text.replace(name, mask)
        return text

    reading = {"batch_tokens": batch_tokens, "too_long": too_long, "warn": warn, "first_window": first_window}
    reading["kept"] = (mask,)
    for number, (parts, found) in enumerate(
        scored(loaded, map(own_masks, checked_texts(texts)), read_out, **reading), start=1
    ):
        holes = [hole for part in found for hole in part]
        text = "".join(parts)
        if text.count(mask) != len(holes):
            warn(f"line {number}: {text.count(mask) - len(holes)} holes are in the part that was cut off")
        elif parts and not holes:
            warn(f"line {number}: no hole to fill; mark one with {mask}")
        for hole in holes:
            text = _put(text, tokenizer, hole[0][0])
        yield Filled(text, [[(str(tokenizer.decode([i])), p) for i, p in hole] for hole in holes])


def _hole_logits(model: PreTrainedModel, batch: Batch, hole_BL: Tensor) -> Tensor:
    """Return the logits of the holes, row by row, (holes, vocabulary)."""
    if takes_target_mapping(model.forward):  # XLNet: only the stream of queries has learnt to predict
        logits_BTV = logits_of(model, holes_mapped(batch, hole_BL))
        asked_BT = torch.arange(logits_BTV.shape[1], device=hole_BL.device) < hole_BL.sum(dim=1, keepdim=True)
        return logits_BTV[asked_BT].float()
    if objective_of(model.config) == PERMUTATION:
        batch = holes_unseen(batch, hole_BL)
    return scored_logits(model, batch, hole_BL)


def _put(text: str, tokenizer: Any, token_id: int) -> str:
    """Fill the first hole, with spaces as the tokenizer has them.

    A `##` token (WordPiece) joins the word before it. Other tokenizers mark the tokens that begin a word. A token
    without this mark joins the word before it, if the mask token includes the space.
    """
    before, _, after = text.partition(tokenizer.mask_token)
    piece, token = tokenizer.convert_ids_to_tokens(token_id), str(tokenizer.decode([token_id]))
    if piece.startswith("##"):
        return before.rstrip() + token[2:] + after
    decoder = str(tokenizer.backend_tokenizer.decoder) if tokenizer.is_fast else ""
    if "ByteLevel" in decoder or "Metaspace" in decoder:
        takes_space = "Metaspace" in decoder or tokenizer.added_tokens_decoder[tokenizer.mask_token_id].lstrip
        if piece.startswith(("Ġ", "▁")):
            return (f"{before.rstrip()} " if before.strip() else before) + token.lstrip() + after
        return (before.rstrip() if takes_space else before) + token + after
    token = token.strip() if not before or before[-1].isspace() else token
    return before + token + after
