"""Run texts through a model that scores but does not generate, in batches sorted by length."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from decero.data.special_tokens import TEXT, encode_framed, special_tokens_around
from decero.execution.weight_layout import prepacked_weights
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn, in_order, pieces, windows
from decero.inference.decode import quiet
from decero.inference.decoding_plan import batches_by_length
from decero.inference.loading import Loaded

TOKENS_PER_BATCH = 8192
Batch = dict[str, Tensor]
T = TypeVar("T")


def scored(
    loaded: Loaded, texts: Iterable[Any], read_out: Callable[[PreTrainedModel, Batch], list[T]], *,
    batch_tokens: int, too_long: TooLong, warn: Warn, first_window: int = FIRST_WINDOW, kept: tuple[str, ...] = (),
) -> Iterator[tuple[list[Any], list[T]]]:  # fmt: skip
    """Yield for each text, in order, its parts and the results of `read_out` for them.

    texts: texts, or pairs of texts (tuples), which are cut where they are too long, as in training.
    read_out: (model, batch) -> one result per row. kept: special tokens that count in a text, such as the mask.
    """
    number = 0
    limit = loaded.positions()
    with prepacked_weights(loaded.model):
        for window in windows(texts, first_window):
            parts = [
                _pair(loaded, text, number + i + 1, limit, warn) if isinstance(text, tuple)
                else pieces(loaded, text, number + i + 1, too_long, warn) for i, text in enumerate(window)
            ]  # fmt: skip
            rows = _encoded(loaded, [part for text_parts in parts for part in text_parts] or ["."], limit, kept)
            numbers = iter(range(sum(map(len, parts))))
            pieces_of = [[next(numbers) for _ in text_parts] for text_parts in parts]
            lengths = [len(rows["input_ids"][i]) for i in range(sum(map(len, parts)))]
            batches = batches_by_length(lengths, [0] * len(lengths), batch_tokens)
            done = ((batch, _run(loaded, rows, batch, read_out)) for batch in batches)
            for text_parts, results in zip(parts, in_order(pieces_of, done), strict=True):
                number += 1
                yield text_parts, results


def _pair(loaded: Loaded, pair: tuple[str, str], number: int, limit: int | None, warn: Warn) -> list[tuple[str, str]]:
    """Return the pair as its only part; no part if both texts are empty. Warn if it will be cut."""
    if not any(text.strip() for text in pair):
        return []
    tokens = len(loaded.tokenizer(*([text] for text in pair), **TEXT)["input_ids"][0])
    if limit is not None and tokens > limit:
        warn(f"line {number}: cut; its {tokens} tokens exceed the limit of {limit} of {loaded.name}")
    return [pair]


def _encoded(loaded: Loaded, parts: list[Any], limit: int | None, kept: tuple[str, ...]) -> Any:
    """Tokenize texts, or pairs. Special tokens in them are text, except `kept`."""
    tokenizer, cut = loaded.tokenizer, {"truncation": limit is not None, "max_length": limit}
    if isinstance(parts[0], tuple):
        return tokenizer([first for first, _ in parts], [second for _, second in parts], **cut, **TEXT)
    if not kept:
        return tokenizer(parts, **cut, **TEXT)
    others = [token for token in tokenizer.all_special_tokens if token not in kept]
    if not any(token in part for part in parts for token in others):
        return tokenizer(parts, verbose=False, **cut)
    before, after = special_tokens_around(tokenizer)
    room = None if limit is None else limit - len(before) - len(after)
    ids = [[*before, *encode_framed(tokenizer, str, part, kept=kept)[:room], *after] for part in parts]
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


@torch.no_grad()
def _run(loaded: Loaded, rows: Any, indices: list[int], read_out: Callable[[PreTrainedModel, Batch], list[T]]):
    chosen = {name: [values[i] for i in indices] for name, values in rows.items()}
    with quiet():  # transformers would advise to pad while tokenizing, but rows are sorted later
        batch = loaded.tokenizer.pad(chosen, padding=True, return_tensors="pt")
    return read_out(loaded.model, dict(batch.to(loaded.model.device)))
