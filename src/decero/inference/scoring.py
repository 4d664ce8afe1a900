"""Run texts through a model that scores but does not generate, in batches sorted by length."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from decero.execution.weight_layout import prepacked_weights
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn, in_order, pieces, windows
from decero.inference.decode import quiet
from decero.inference.decoding_plan import batches_by_length
from decero.inference.loading import Loaded

TOKENS_PER_BATCH = 8192
Batch = dict[str, Tensor]
T = TypeVar("T")


def scored(
    loaded: Loaded, texts: Iterable[str], read_out: Callable[[PreTrainedModel, Batch], list[T]], *,
    batch_tokens: int, too_long: TooLong, warn: Warn, first_window: int = FIRST_WINDOW,
) -> Iterator[tuple[list[str], list[T]]]:  # fmt: skip
    """Yield for each text, in order, its parts and the results of `read_out` for them.

    read_out: (model, batch) -> one result per row.
    """
    number = 0
    limit = loaded.positions()
    with prepacked_weights(loaded.model):
        for window in windows(texts, first_window):
            parts = [pieces(loaded, text, number + i + 1, too_long, warn) for i, text in enumerate(window)]
            rows = loaded.tokenizer(
                [part for text_parts in parts for part in text_parts] or ["."], verbose=False,
                truncation=limit is not None, max_length=limit,
            )  # fmt: skip
            numbers = iter(range(sum(map(len, parts))))
            pieces_of = [[next(numbers) for _ in text_parts] for text_parts in parts]
            lengths = [len(rows["input_ids"][i]) for i in range(sum(map(len, parts)))]
            batches = batches_by_length(lengths, [0] * len(lengths), batch_tokens)
            done = ((batch, _run(loaded, rows, batch, read_out)) for batch in batches)
            for text_parts, results in zip(parts, in_order(pieces_of, done), strict=True):
                number += 1
                yield text_parts, results


@torch.no_grad()
def _run(loaded: Loaded, rows: Any, indices: list[int], read_out: Callable[[PreTrainedModel, Batch], list[T]]):
    chosen = {name: [values[i] for i in indices] for name, values in rows.items()}
    with quiet():  # transformers would advise to pad while tokenizing, but rows are sorted later
        batch = loaded.tokenizer.pad(chosen, padding=True, return_tensors="pt")
    return read_out(loaded.model, dict(batch.to(loaded.model.device)))
