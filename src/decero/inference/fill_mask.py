"""What stood in the holes of a text, by a masked language model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from decero.errors import UserError
from decero.execution.objective import projecting_only
from decero.execution.packed_forward import logits_of
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn
from decero.inference.generation import silent
from decero.inference.loading import Loaded, load
from decero.inference.scoring import TOKENS_PER_BATCH, Batch, scored

Candidates = list[tuple[str, float]]
MASKS = ("[MASK]", "<mask>")  # either is understood, whatever the tokenizer's own is


@dataclass(frozen=True)
class Filled:
    """text: with the likeliest token in each hole. holes: of each, the likeliest tokens and their probabilities."""

    text: str
    holes: list[Candidates]


def fill(
    model: str | Path | Loaded, texts: Iterable[str], *, top_k: int = 5, batch_tokens: int = TOKENS_PER_BATCH,
    too_long: TooLong = "split", warn: Warn = silent, first_window: int = FIRST_WINDOW,
) -> Iterator[Filled]:  # fmt: skip
    """Each text with its holes filled, in order. A hole is [MASK] or <mask>, one token wide.

    Holes are guessed each by itself, the others open. A text without one comes back as it is.
    Raises UserError: what `load` refuses; a tokenizer without a mask token.
    """
    loaded = load(model, "fill")
    if loaded.tokenizer.mask_token is None:
        raise UserError(f"{loaded.name}: its tokenizer has no mask token")
    return _fill(loaded, texts, top_k, batch_tokens, too_long, warn, first_window)


def _fill(loaded: Loaded, texts, top_k, batch_tokens, too_long, warn, first_window) -> Iterator[Filled]:
    tokenizer, mask = loaded.tokenizer, str(loaded.tokenizer.mask_token)

    def read_out(model: PreTrainedModel, batch: Batch) -> list[list[Candidates]]:
        hole_BL = batch["input_ids"] == tokenizer.mask_token_id
        found: list[list[Candidates]] = [[] for _ in hole_BL]
        if not hole_BL.any():
            return found
        with projecting_only(model, hole_BL):
            logits_NV = logits_of(model, batch).float()
        best = logits_NV.softmax(dim=-1).topk(min(top_k, logits_NV.shape[-1]))
        rows = hole_BL.nonzero()[:, 0].tolist()
        for row, ids, probabilities in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
            tokens = [str(tokenizer.decode([i])) for i in ids]
            found[row].append(list(zip(tokens, probabilities, strict=True)))
        return found

    def own_masks(text: str) -> str:
        for each in MASKS:
            text = text.replace(each, mask)
        return text

    reading = {"batch_tokens": batch_tokens, "too_long": too_long, "warn": warn, "first_window": first_window}
    for number, (parts, found) in enumerate(scored(loaded, map(own_masks, texts), read_out, **reading), start=1):
        holes = [hole for part in found for hole in part]
        text = "".join(parts)
        if text.count(mask) != len(holes):
            warn(f"line {number}: {text.count(mask) - len(holes)} holes lie behind what was read, and stay")
        elif parts and not holes:
            warn(f"line {number}: has no hole; write {mask} where one is")
        for hole in holes:
            text = _put(text, mask, hole[0][0])
        yield Filled(text, holes)


def _put(text: str, mask: str, token: str) -> str:
    """The first hole filled; `##` marks the rest of a word (WordPiece), a leading space is the text's own."""
    before, _, after = text.partition(mask)
    if token.startswith("##"):
        return before.rstrip() + token[2:] + after
    token = token.strip() if not before or before[-1].isspace() else token
    return before + token + after
