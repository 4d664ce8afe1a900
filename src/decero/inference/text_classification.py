"""Classify texts with a model that has a classification head."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn
from decero.inference.generation import silent
from decero.inference.loading import Loaded, load
from decero.inference.scoring import TOKENS_PER_BATCH, Batch, scored


def classify(
    model: str | Path | Loaded, texts: Iterable[str], *, batch_tokens: int = TOKENS_PER_BATCH,
    too_long: TooLong = "split", warn: Warn = silent, first_window: int = FIRST_WINDOW,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Yield for each text the probability of every label, likeliest first; {} for an empty text.

    Probabilities sum to one, except in a multi-label model, where each label has its own. A regression model gives
    {name: value}. The result of a split text is the mean over its parts, weighted by their lengths.
    Raises UserError as `load` does.
    """
    loaded = load(model, "classify")
    return _classify(loaded, texts, batch_tokens, too_long, warn, first_window)


def _classify(loaded: Loaded, texts, batch_tokens, too_long, warn, first_window) -> Iterator[dict[str, float]]:
    config: Any = loaded.model.config
    names = [str(config.id2label.get(i, i)) for i in range(config.num_labels)]

    def read_out(model: PreTrainedModel, batch: Batch) -> list[np.ndarray]:
        logits_BC = model(**batch).logits.float()
        if config.num_labels == 1 or config.problem_type == "regression":
            return list(logits_BC.cpu().numpy())
        multi_label = config.problem_type == "multi_label_classification"
        return list((logits_BC.sigmoid() if multi_label else logits_BC.softmax(dim=-1)).cpu().numpy())

    reading = {"batch_tokens": batch_tokens, "too_long": too_long, "warn": warn, "first_window": first_window}
    for parts, found in scored(loaded, texts, read_out, **reading):
        if not parts:
            yield {}
            continue
        mean_C = np.average(found, axis=0, weights=[len(part) for part in parts])
        yield {names[i]: float(mean_C[i]) for i in np.argsort(-mean_C, kind="stable")}
