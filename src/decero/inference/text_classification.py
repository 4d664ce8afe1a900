"""Classify texts, or pairs of texts, with a model that has a classification head."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn, checked_texts
from decero.inference.generation import silent
from decero.inference.loading import Loaded, load
from decero.inference.scoring import TOKENS_PER_BATCH, Batch, scored


def classify(
    model: str | Path | Loaded, texts: Iterable[str] | Iterable[tuple[str, str]], *,
    batch_tokens: int = TOKENS_PER_BATCH, too_long: TooLong = "split", warn: Warn = silent,
    first_window: int = FIRST_WINDOW,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Yield for each text the probability of every label, likeliest first; {} for an empty text.

    texts: texts, or pairs of texts for a model that was fine-tuned on pairs.
    Probabilities sum to one, except in a multi-label model, where each label has its own. A regression model gives
    {name: value}. The numbers are those of transformers' pipeline. Labels of one name get their ids: `name (2)`.
    A model of two labels that has a threshold gives the label that it predicts first.
    The result of a split text is the mean over its parts, weighted by their lengths. A pair is cut.

    Raises UserError as `load` does, and for a single text where the model reads pairs.
    """
    loaded = load(model, "classify")
    return _classify(loaded, _checked(loaded, texts, warn), batch_tokens, too_long, warn, first_window)


def reads_pairs(loaded: Loaded) -> bool | None:
    """Return whether the model was fine-tuned on pairs of texts; None if its checkpoint does not say."""
    return getattr(loaded.model.config, "reads_pairs", None)


def threshold_of(config: Any) -> float:
    """Return the probability above which a label is predicted: the `decision_threshold` of the model, else 0.5.

    Raises UserError for one that is no number between 0 and 1.
    """
    threshold = getattr(config, "decision_threshold", None)
    threshold = 0.5 if threshold is None else threshold
    if not isinstance(threshold, float) or not 0 < threshold < 1:
        raise UserError(f"config.json: decision_threshold is {str(threshold)[:40]}, not a number between 0 and 1")
    return threshold


def _checked(loaded: Loaded, texts: Iterable[Any], warn: Warn) -> Iterator[Any]:
    wants, warned, first = reads_pairs(loaded), False, None
    for number, text in enumerate(checked_texts(texts, pairs=None), start=1):
        is_pair = isinstance(text, tuple)
        first = is_pair if first is None else first
        if wants and not is_pair and text.strip():
            raise UserError(
                f"{loaded.name}: it reads pairs of texts, and line {number} is a single one; give both texts"
            )
        if is_pair != first:
            raise UserError(f"line {number}: give only texts, or only pairs of texts")
        if is_pair and wants is False and not warned:
            warned = True
            warn(f"{loaded.name} was fine-tuned on single texts, not on pairs")
        yield text


def _classify(loaded: Loaded, texts, batch_tokens, too_long, warn, first_window) -> Iterator[dict[str, float]]:
    def read_out(model: PreTrainedModel, batch: Batch) -> list[np.ndarray]:
        return list(probabilities(model.config, model(**batch).logits.float()).cpu().numpy())

    reading = {"batch_tokens": batch_tokens, "too_long": too_long, "warn": warn, "first_window": first_window}
    for parts, found in scored(loaded, texts, read_out, **reading):
        if not parts:
            yield {}
            continue
        mean_C = np.average(found, axis=0, weights=[max(1, len(part)) for part in parts])
        config: Any = loaded.model.config
        names, order = names_of(config, len(mean_C)), np.argsort(-mean_C, kind="stable").tolist()
        if config.problem_type == "single_label_classification" and len(mean_C) == 2:
            order = [1, 0] if mean_C[1] > threshold_of(config) else [0, 1]
        yield {names[i]: float(mean_C[i]) for i in order}


def probabilities(config: Any, logits_BC: Tensor) -> Tensor:
    """Return what transformers' pipeline returns: values of a regression as they are, else probabilities."""
    if config.problem_type == "regression":
        return logits_BC
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits_BC.sigmoid()
    return logits_BC.softmax(dim=-1)


def names_of(config: Any, outputs: int) -> list[str]:
    """Return a different name for each output. An output without a name is LABEL_2; equal names get their ids."""
    names = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(outputs)]
    often = Counter(names)
    return [f"{name} ({i})" if often[name] > 1 else name for i, name in enumerate(names)]
