"""Which label a text has, by a model with a classification head."""

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
    """The probability of every label, the likeliest first, text after text; {} for an empty one.

    They sum to one, but for a model of several labels a text, whose each has its own. A regression gives {name: value}.
    A text that was split has the mean over its parts, each by its length. Raises UserError: what `load` refuses.
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
        several = config.problem_type == "multi_label_classification"
        return list((logits_BC.sigmoid() if several else logits_BC.softmax(dim=-1)).cpu().numpy())

    reading = {"batch_tokens": batch_tokens, "too_long": too_long, "warn": warn, "first_window": first_window}
    for parts, found in scored(loaded, texts, read_out, **reading):
        if not parts:
            yield {}
            continue
        mean_C = np.average(found, axis=0, weights=[len(part) for part in parts])
        yield {names[i]: float(mean_C[i]) for i in np.argsort(-mean_C, kind="stable")}
