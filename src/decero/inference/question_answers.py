"""Find the answers to questions in contexts: the best spans of all windows, or no answer."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from decero.data.answer_windows import AnswerCollator, Window, Windows
from decero.errors import UserError
from decero.execution.answer_settings import settings_of
from decero.execution.span_objective import no_answer_token, window_logits
from decero.execution.weight_layout import prepacked_weights
from decero.inference.chunking import checked_texts
from decero.inference.decoding_plan import batches_by_length
from decero.inference.loading import Loaded, load
from decero.inference.scoring import TOKENS_PER_BATCH

N_BEST = 20
JOINED = ("Mn", "Me", "Cf")  # kinds of characters that belong to the one before: accents, joiners


class Candidate(NamedTuple):
    """A span of the context by characters. score: its start logit plus its end logit."""

    start: int
    end: int
    score: float


class Reading(NamedTuple):
    """What a model finds in one window, or in all windows of a question.

    candidates: spans, the best first. no_answer: the score of no answer, start logit plus end logit of its token.
    """

    candidates: list[Candidate]
    no_answer: float

    @property
    def margin(self) -> float:
        """Return the score of no answer minus that of the best answer; infinite where there is none."""
        return self.no_answer - self.candidates[0].score if self.candidates else np.inf


@dataclass(frozen=True)
class Answer:
    """The answer to a question. text: "" for no answer; start, end: its characters in the context, then None.

    score: its share of the softmax over the best spans and no answer. no_answer: the share of no answer.
    n_best: (text, start, end, score) of the best spans.
    """

    text: str
    start: int | None
    end: int | None
    score: float
    no_answer: float
    n_best: list[tuple[str, int, int, float]]


def best_spans(start_C: np.ndarray, end_C: np.ndarray, longest: int, n: int) -> list[tuple[int, int, float]]:
    """Return the first and last token and the score of the `n` best spans of at most `longest` tokens, best first.

    start_C, end_C: the logits of the context tokens. All spans are compared, not only those of the best starts.
    """
    C = len(start_C)
    if not C:
        return []
    longest = min(longest, C)
    padded = np.concatenate([end_C, np.full(longest - 1, -np.inf, dtype=end_C.dtype)])
    scores = (start_C[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)).ravel()
    kept = np.argpartition(-scores, min(n, len(scores)) - 1)[:n]
    kept = kept[np.isfinite(scores[kept])]
    kept = kept[np.lexsort((kept, -scores[kept]))]
    return [(int(k // longest), int(k // longest + k % longest), float(scores[k])) for k in kept]


def read_window(
    logits_L2: np.ndarray, first: int, characters_2C: np.ndarray, context: str, no_answer_place: int, longest: int,
    n: int = N_BEST,
) -> Reading:  # fmt: skip
    """Return what one window says.

    first: the place of its first context token. characters_2C: start and end of each context token.
    """
    starts_C, ends_C = characters_2C
    start_C, end_C = logits_L2[first : first + len(starts_C)].T
    found: dict[tuple[int, int], float] = {}
    for a, b, score in best_spans(start_C, end_C, longest, n):
        start, end = trimmed(context, int(starts_C[a]), int(ends_C[b]))
        if start < end:
            found.setdefault((start, end), score)
    return Reading([Candidate(*span, score) for span, score in found.items()], float(logits_L2[no_answer_place].sum()))


def trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """Leave out white space at both ends, and take in the accents and joiners that follow the last character."""
    while start < end and context[start].isspace():
        start += 1
    while end > start and context[end - 1].isspace():
        end -= 1
    while start < end < len(context) and unicodedata.category(context[end]) in JOINED:
        end += 1
    return start, end


def merged(windows: Iterable[Reading], n: int = N_BEST) -> Reading:
    """Join the windows of a question: the best score of each span, the lowest score of no answer (Devlin et al. 2019).

    A window that does not hold the answer rightly says no answer. So no answer counts only where all windows say it.
    """
    best: dict[tuple[int, int], float] = {}
    lowest = np.inf
    for candidates, no_answer in windows:
        lowest = min(lowest, no_answer)
        for start, end, score in candidates:
            best[start, end] = max(score, best.get((start, end), -np.inf))
    order = sorted(best, key=lambda span: (-best[span], span))[:n]
    return Reading([Candidate(*span, best[span]) for span in order], lowest)


def decided(reading: Reading, context: str, threshold: float | None) -> Answer:
    """Return the answer. threshold: the margin above which there is none; None: always the best span."""
    scores = np.array([reading.no_answer, *(each.score for each in reading.candidates)])
    shares = np.exp(scores - scores.max())
    none, *shares = (shares / shares.sum()).tolist()
    n_best = [
        (context[c.start : c.end], c.start, c.end, share) for c, share in zip(reading.candidates, shares, strict=True)
    ]
    if not n_best or (threshold is not None and reading.margin > threshold):
        return Answer("", None, None, none, none, n_best)
    return Answer(*n_best[0], none, n_best)


def answer(
    model: str | Path | Loaded, pairs: Iterable[tuple[str, str]], *, n_best: int = N_BEST,
    no_answer_threshold: float | None = None, batch_tokens: int = TOKENS_PER_BATCH, **loading: Any,
) -> Iterator[Answer]:  # fmt: skip
    """Answer questions from contexts of any length: yield an `Answer` for each pair (question, context), in order.

    model: a folder, a name on the hub, package:NAME/FOLDER, or the result of `load`. loading: arguments of `load`.
    n_best: how many spans to return. no_answer_threshold: replaces that of the checkpoint; infinity: always answer.

    Windows, their stride and the longest answer are those of training, from `config.question_answering`.
    Raises UserError as `load`, and for a question that leaves no room for its context.
    """
    loaded = load(model, "answer", **loading)
    settings = settings_of(loaded.model.config, loaded.positions(), loaded.name)
    if no_answer_threshold is not None:
        settings = settings._replace(no_answer_threshold=no_answer_threshold)
    cut = Windows(loaded.tokenizer, settings.max_length, settings.stride, "shorten the question")
    segments = "token_type_ids" in loaded.tokenizer.model_input_names and reads_segments(loaded.model)
    collate = AnswerCollator(loaded.tokenizer, segments, no_answer_token(loaded.model, loaded.tokenizer))
    with prepacked_weights(loaded.model):
        for number, (question, context) in enumerate(checked_texts(pairs, pairs=True), start=1):
            if not question.strip():
                raise UserError(f"question {number}: it is empty; give a question")
            windows = cut([question], [context], [f"question {number}"])[0]
            n = max(n_best, N_BEST)
            reading = merged(_read(loaded, collate, windows, context, settings.max_answer_length, n, batch_tokens), n)
            found = decided(reading, context, settings.no_answer_threshold)
            yield replace(found, n_best=found.n_best[:n_best])


def reads_segments(model: Any) -> bool:
    """Return whether a model has embeddings for token_type_ids."""
    return getattr(model.config, "type_vocab_size", 2) >= 2


@torch.no_grad()
def _read(
    loaded: Loaded, collate: AnswerCollator, windows: list[Window], context: str, longest: int, n: int,
    batch_tokens: int,
) -> Iterator[Reading]:  # fmt: skip
    lengths = [len(window.input_ids) for window in windows]
    for places in batches_by_length(lengths, [0] * len(lengths), batch_tokens):
        rows = [{"input_ids": windows[i].input_ids, "token_type_ids": windows[i].token_type_ids} for i in places]
        batch = {name: tensor.to(loaded.model.device) for name, tensor in collate(rows).items()}
        logits_WL2, _ = window_logits(loaded.model, batch)
        for i, logits_L2 in zip(places, logits_WL2.cpu().numpy(), strict=True):
            none = 0 if collate.no_answer == "first" else lengths[i] - 1
            yield read_window(logits_L2, windows[i].first, windows[i].characters, context, none, longest, n)
