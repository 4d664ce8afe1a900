"""Summarize texts with a model that chooses sentences."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from decero.data.sentences import choose_sentences, mark_sentences, sentences_of
from decero.errors import UserError
from decero.execution.weight_layout import prepacked_weights
from decero.inference.chunking import FIRST_WINDOW, Warn, checked_texts, windows
from decero.inference.decode import quiet
from decero.inference.decoding_plan import batches_by_length
from decero.inference.loading import Loaded
from decero.inference.scoring import TOKENS_PER_BATCH

Marked = tuple[list[str], list[int], list[int]]  # sentences, token ids, place of each sentence that is read


def is_extractive(loaded: Loaded) -> bool:
    """Return whether a model chooses sentences. Raises UserError for a damaged configuration."""
    how: Any = getattr(loaded.model.config, "extractive", None)
    if how is None:
        return False
    numbers = [how.get(name) for name in ("num_sentences", "max_length")] if isinstance(how, dict) else [0]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise UserError(f"{loaded.name}/config.json: extractive is {str(how)[:80]}, which no run of decero writes")
    return True


def chosen_sentences(
    loaded: Loaded, texts: Iterable[str], *, batch_tokens: int = TOKENS_PER_BATCH, warn: Warn,
    first_window: int = FIRST_WINDOW, too_long: str | None = None, **others: Any,
) -> Iterator[str]:  # fmt: skip
    """Yield for each text its best sentences, one a line, in the order of the text; "" for an empty text.

    Sentences behind the tokens that the model was trained to read are never chosen; `warn` says so.
    Raises UserError for an option of models that write.
    """
    others |= {"too_long": None if too_long == "cut" else too_long}
    for name, value in others.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{loaded.name}: it chooses sentences and writes none; remove {option}")
    return _stream(loaded, windows(checked_texts(texts), first_window), batch_tokens, warn)


def _stream(loaded: Loaded, text_windows: Iterable[list[str]], batch_tokens: int, warn: Warn) -> Iterator[str]:
    how: Any = loaded.model.config.extractive  # type: ignore[attr-defined]
    limit, number = min(how["max_length"], loaded.positions() or how["max_length"]), 0
    with prepacked_weights(loaded.model):
        for window in text_windows:
            rows: list[Marked] = []
            for text in window:
                number, sentences = number + 1, sentences_of(text)
                ids, places, cut = mark_sentences(loaded.tokenizer, sentences, limit)
                rows.append((sentences, ids, places))
                if cut:
                    warn(f"line {number}: cut; only its first {len(places)} of {len(sentences)} sentences are read")
            scores: dict[int, list[float]] = {}
            for batch in batches_by_length([len(ids) for _, ids, _ in rows], [0] * len(rows), batch_tokens):
                scores |= zip(batch, _scores(loaded, [rows[i] for i in batch]), strict=True)
            for i, (sentences, _, _) in enumerate(rows):
                most, block = how["num_sentences"], bool(how.get("trigram_blocking", True))
                yield "\n".join(sentences[k] for k in choose_sentences(sentences, scores[i], most, block))


@torch.no_grad()
def _scores(loaded: Loaded, rows: list[Marked]) -> list[list[float]]:
    model: PreTrainedModel = loaded.model
    with quiet():
        batch = loaded.tokenizer.pad({"input_ids": [ids for _, ids, _ in rows]}, padding=True, return_tensors="pt")
    batch = batch.to(model.device)
    logits_BL2 = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    scores_BL = (logits_BL2[..., 1] - logits_BL2[..., 0]).cpu()
    starts = batch["attention_mask"].int().argmax(dim=1).tolist()  # padding may stand on the left
    places_of = [[start + place for place in places] for start, (_, _, places) in zip(starts, rows, strict=True)]
    return [own_L[places].tolist() for own_L, places in zip(scores_BL, places_of, strict=True)]
