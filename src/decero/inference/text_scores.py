"""Score texts with a language model: log-likelihood (causal), or pseudo-log-likelihood (masked)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import send_to_device
from torch import nn

from decero.data.likelihood_rows import CausalRows, LikelihoodRows, MaskedRows, Method, ScoredPassage
from decero.data.permutation import holes_unseen
from decero.errors import UserError
from decero.execution.pretraining_objective import HYBRID, PERMUTATION, objective_of
from decero.execution.token_scores import check_causal, token_log_probabilities
from decero.execution.weight_layout import prepacked_weights
from decero.inference.chunking import FIRST_WINDOW, Warn, checked_texts, windows
from decero.inference.decoding_plan import batches_by_length
from decero.inference.generation import silent
from decero.inference.loading import Loaded, load
from decero.inference.scoring import TOKENS_PER_BATCH


@dataclass(frozen=True)
class TextScore:
    """Hold the scores of a text.

    kind: what their sum is, log_likelihood or pseudo_log_likelihood. tokens: as the tokenizer writes them.
    log_probabilities: ln p of each, float64 (tokens,). size: bytes of the text; None where its tokens do not give it
    back.
    """

    kind: str
    tokens: list[str]
    log_probabilities: np.ndarray
    size: int | None

    @property
    def total(self) -> float:
        """Return the sum over tokens, in nats. It does not depend on their order."""
        return math.fsum(self.log_probabilities)


def score(
    model: str | Path | Loaded, texts: Iterable[str], *, pseudo_likelihood: Method | None = None,
    start_token: str | None = None, batch_tokens: int = TOKENS_PER_BATCH, warn: Warn = silent,
    first_window: int = FIRST_WINDOW,
) -> Iterator[TextScore]:  # fmt: skip
    """Score each text, in order. An empty text has no tokens, and is warned of.

    pseudo_likelihood: of a masked or hybrid model, see `MaskedRows`; within_word_l2r when not given. start_token: of a
    causal model, see `CausalRows`. A text that is longer than the model's limit is read in passages, with a warning.

    Raises UserError as `load` does, for an option of the other kind of model, and for a model that computes NaN.
    """
    loaded = load(model, "score")
    if pseudo_likelihood and objective_of(loaded.model.config) == HYBRID:  # it has both heads
        loaded = load(loaded, "fill")
    causal = loaded.model.can_generate()
    wrong = "pseudo_likelihood" if causal and pseudo_likelihood else "start_token" if start_token and not causal else ""
    if wrong:
        kind = "causal" if causal else "masked"
        raise UserError(f"{loaded.name}: {wrong} has no effect on a {kind} model; remove it")
    if causal:
        check_causal(loaded.model, loaded.name)
    rows = CausalRows(loaded.tokenizer, start_token) if causal else MaskedRows(
        loaded.tokenizer, pseudo_likelihood or "within_word_l2r"
    )  # fmt: skip
    return _score(loaded, rows, texts, batch_tokens, warn, first_window)


def _score(loaded: Loaded, rows: LikelihoodRows, texts, batch_tokens, warn, first_window) -> Iterator[TextScore]:
    number, limit = 0, loaded.positions()
    for window in windows(checked_texts(texts), first_window):
        found = rows.cut(window, limit)
        for text in found:
            number += 1
            if not text.passages:
                warn(f"line {number}: it has no tokens, and no score")
            elif len(text.passages) > 1:
                what = f"read in {len(text.passages)} passages; its {text.tokens} tokens exceed the limit of {limit}"
                warn(f"line {number}: {what} of {loaded.name}")
        passages = [passage for text in found for passage in text.passages]
        scores = iter(
            passage_scores(
                loaded.model, rows, passages, lambda sizes: batches_by_length(sizes, [0] * len(sizes), batch_tokens)
            )
        )
        for text in found:
            parts = [next(scores) for _ in text.passages]
            tokens = [t for passage in text.passages for t in loaded.tokenizer.convert_ids_to_tokens(list(passage.ids))]
            yield TextScore(rows.kind, tokens, np.concatenate([np.empty(0), *parts]), text.size)


def passage_scores(
    model: Any,
    rows: LikelihoodRows,
    passages: Sequence[ScoredPassage],
    batches: Callable[[list[int]], Iterable[list[int]]],
) -> list[np.ndarray]:
    """Return ln p of every token of each passage, float64 (tokens,).

    batches: lengths of rows -> batches of their numbers; changes scores by rounding only. Equal passages are computed
    once, so their scores are equal to the last bit.

    Raises UserError for a model that computes NaN.
    """
    distinct = list(dict.fromkeys(passages))
    work = [(place, number) for place, passage in enumerate(distinct) for number in range(rows.count(passage))]
    around = len(rows.before) + len(rows.after)
    lengths = [around + len(distinct[place].ids) for place, _ in work]
    found: dict[tuple[int, int], np.ndarray] = {}
    with prepacked_weights(model):
        for batch in batches(lengths):
            found.update(_batch_scores(model, rows, distinct, [work[index] for index in batch]))
    of_passage = {
        passage: np.concatenate([found[place, number] for number in range(rows.count(passage))])
        for place, passage in enumerate(distinct)
    }
    return [of_passage[passage] for passage in passages]


def _batch_scores(
    model: nn.Module, rows: LikelihoodRows, passages: list[ScoredPassage], work: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    made = [rows.row(passages[place], number) for place, number in work]
    batch = send_to_device(rows.collate(made), next(model.parameters()).device)
    if isinstance(rows, MaskedRows) and objective_of(model.config) == PERMUTATION:
        batch = holes_unseen(batch, batch["input_ids"] == rows.tokenizer.mask_token_id)
    scores_N = token_log_probabilities(model, batch).double().cpu().numpy()
    if np.isnan(scores_N).any():
        raise UserError("the model computes NaN, which is no score; use another checkpoint")
    ends = np.cumsum([(row.labels >= 0).sum() for row in made])
    return zip(work, np.split(scores_N, ends[:-1]), strict=True)
