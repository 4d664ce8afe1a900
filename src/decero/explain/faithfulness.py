"""Measure how far attention ranks the tokens of a text as leave-one-out does.

Jain and Wallace 2019 (arXiv:1902.10186) asked it of one head of recurrent networks, Abnar and Zuidema 2020
(arXiv:2005.00928) of rollout. Here the answer is measured on the user's own texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.errors import UserError
from decero.explain.attribution import attribute
from decero.explain.estimates import TextMean, estimate
from decero.explain.explained import OF_THE_SOURCE, Explained, mask_of, numbered, own_answer, what_is_explained
from decero.explain.pieces import encode
from decero.explain.record import accepted, as_recorded, record
from decero.explain.recording import Attention, Piece
from decero.explain.rollout import rollout

Removal = Literal["mask", "remove"]
Row = Literal["first", "last", "mean", "hole", "target"]
MIN_TOKENS = 5  # a rank correlation of fewer tokens takes few values, and luck gives high ones


@dataclass(frozen=True)
class TextFaithfulness:
    """Hold what one text showed.

    tokens: which pieces were left out, one after the other: those that a reader wrote, but the holes.
    left_out: (tokens), how far the model's own answer fell without the token, in nats of log probability (of a vector:
        cosine). Negative: the token spoke against the answer.
    scores: name of a method -> (tokens). heads: (layers, heads, tokens), raw attention.
    """

    pieces: list[Piece]
    tokens: list[int]
    explained: Explained
    left_out: np.ndarray
    scores: dict[str, np.ndarray]
    heads: np.ndarray

    def correlations(self) -> dict[str, float]:
        """Return for each method its rank correlation with leave-one-out; NaN for too few tokens."""
        return {name: rank_correlation(scores, self.left_out) for name, scores in self.scores.items()}


@dataclass(frozen=True)
class Faithfulness:
    """Hold the rank correlation of each method with leave-one-out over some texts.

    methods: name -> mean over texts, with an interval.
    heads: (layers, heads), mean over texts of the correlation of each head's raw attention; NaN where there is none.
    short: how many texts were left out, because they have fewer than MIN_TOKENS tokens to leave out.
    row: which row of the attention was read. removal: whether a mask token replaced a token, or the token was removed.
    """

    methods: dict[str, TextMean]
    heads: np.ndarray
    texts: list[TextFaithfulness] = field(repr=False)
    short: int
    row: Row
    removal: Removal


def measure_faithfulness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str | tuple[str, str]], *,
    targets: Sequence[str] | None = None, integrated: bool = False, done: Callable[[int], Any] = lambda texts: None,
) -> Faithfulness:  # fmt: skip
    """Compare attention and gradients with leave-one-out on the user's own texts.

    targets: what the decoder of an encoder-decoder reads, one a text; without them the model writes them. A masked
    language model answers at the holes of a text; in a text without a hole its middle token is masked.
    done: called with the number of each finished text.

    integrated: also integrated gradients, which need captum and as much time as leave-one-out or more.

    The methods are `last_layer` and `all_layers` (raw attention, mean over heads), `rollout` (not for cross-attention),
    `value_weighted` (mean over layers and heads; absent where the family hides its values), `gradient` (gradient x
    input) and `integrated`. The gradient of a cosine with itself is 0, so a model without a head has integrated
    gradients instead, if captum is there.

    Raises UserError: no text; targets that are not as many; what `record` and `own_answer` refuse.
    """
    if not texts:
        raise UserError("faithfulness needs a text")
    if targets is not None and len(targets) != len(texts):
        raise UserError(f"{len(targets)} targets for {len(texts)} texts; give one for each text")
    measured = []
    row: Row = "first"
    with as_recorded(model):
        for number, text in enumerate(texts):
            first, second = text if isinstance(text, tuple) else (text, None)
            with numbered(number, len(texts)):
                found, row = _measure(model, tokenizer, first, second, targets[number] if targets else None, integrated)
            measured.append(found)
            done(number + 1)
    return summarize(measured, row, removal_of(tokenizer))


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    text_b: str | None,
    target: str | None,
    integrated: bool,
) -> tuple[TextFaithfulness, Row]:
    source = encode(model, tokenizer, text, text_b)
    if not model.config.is_encoder_decoder:
        what = what_is_explained(model, accepted(model, source.inputs))
        if what == "masked" and not (source.inputs["input_ids"] == mask_of(tokenizer)).any():
            text, text_b = _with_hole(tokenizer, source.pieces, text, text_b)
            source = encode(model, tokenizer, text, text_b)
    seen = record(model, tokenizer, text, text_b=text_b, target=target, values=True)
    attention = seen.attentions.get("cross") or next(iter(seen.attentions.values()))
    inputs = source.inputs
    if attention.kind == "cross":
        ids = [piece.id for piece in attention.queries]
        inputs = inputs | {"decoder_input_ids": torch.tensor([ids], device=model.device)}
    explained = own_answer(model, tokenizer, accepted(model, inputs))
    holes = explained.positions if explained.what == "masked" else ()
    tokens = [i for i, piece in enumerate(attention.keys) if not piece.special and i not in holes]
    row = row_of(model, explained, attention)
    rows = rows_read(row, explained, len(attention.queries))

    def shown(weights_HQK: np.ndarray) -> np.ndarray:
        return weights_HQK[..., rows, :].mean(-2)[..., tokens]

    heads_LHN = np.stack([shown(attention.weights[layer]) for layer in sorted(attention.weights)])
    scores = {"last_layer": heads_LHN[-1].mean(0), "all_layers": heads_LHN.mean((0, 1))}
    if attention.kind != "cross":
        scores["rollout"] = shown(rollout(attention)[-1])
    if attention.value_norms:
        scores["value_weighted"] = np.mean([shown(each).mean(0) for each in attention.value_norms.values()], axis=0)
    vector = explained.what == "vector"
    if not vector:
        slope = attribute(model, tokenizer, explained, "gradient_x_input", summed=True)
        scores["gradient"] = slope.scores[0, tokens]
    if integrated or (vector and find_spec("captum") is not None):
        written = [not piece.special for piece in attention.keys]
        path = attribute(model, tokenizer, explained, written=written, summed=True)
        scores["integrated"] = path.scores[0, tokens]
    left_out = leave_one_out(model, tokenizer, explained, tokens)
    return TextFaithfulness(attention.keys, tokens, explained, left_out, scores, heads_LHN), row


def _with_hole(
    tokenizer: PreTrainedTokenizerBase, pieces: list[Piece], text: str, text_b: str | None
) -> tuple[str, str | None]:
    """Mask the middle token of a text, or of a pair. Raises UserError for a text without a token."""
    places = [piece for piece in pieces if not piece.special]
    if not places:
        raise UserError("the text has no token to mask; give a longer text")
    piece = places[len(places) // 2]
    parts = [text, text_b]
    whole = str(parts[piece.segment])
    parts[piece.segment] = f"{whole[: piece.start]}{tokenizer.mask_token}{whole[piece.end :]}"
    return str(parts[0]), parts[1]


def rank_correlation(scores_N: np.ndarray, left_out_N: np.ndarray) -> float:
    """Return Spearman's rank correlation of the sizes of both; NaN for fewer than MIN_TOKENS or for equal scores.

    Sizes, because attention has no sign: a token that speaks against the answer is important, too.
    """
    sizes = np.abs(scores_N), np.abs(left_out_N)
    if len(scores_N) < MIN_TOKENS or any(np.ptp(size) == 0 for size in sizes):
        return float("nan")
    return float(np.corrcoef([_ranks(size) for size in sizes])[0, 1])


def _ranks(values_N: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 0; equal values share the mean of their ranks."""
    _, at_N, counts_U = np.unique(values_N, return_inverse=True, return_counts=True)
    return (counts_U.cumsum() - (counts_U + 1) / 2)[at_N]


@torch.no_grad()
def leave_one_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, explained: Explained, tokens: Sequence[int]
) -> np.ndarray:
    """Return for each token how far the explained outputs fall in sum when it is left out: (tokens).

    The mask token replaces it; without a mask token it is removed. See `removal_of`.
    NaN for a token that cannot be removed, because the text has no other.
    """
    removal = removal_of(tokenizer)
    if removal == "remove" and explained.ids_1L.shape[1] < 2:
        return np.full(len(tokens), np.nan)
    rows: dict[str, list[Tensor]] = {name: [] for name in OF_THE_SOURCE if name in explained.inputs}
    for token in tokens:
        for name in rows:
            row_L = explained.inputs[name][0].clone()
            if removal == "remove":
                row_L = torch.cat([row_L[:token], row_L[token + 1 :]])
            elif name == "input_ids":
                row_L[token] = tokenizer.mask_token_id
            rows[name].append(row_L)
    whole = float(explained.scores(model).sum())
    left = [
        explained.scores(
            model, part.stop - part.start, **{name: torch.stack(each[part]) for name, each in rows.items()}
        ).sum(1) for part in explained.chunks(model, len(tokens))
    ]  # fmt: skip
    return whole - torch.cat(left).double().cpu().numpy() if left else np.zeros(0)


def removal_of(tokenizer: PreTrainedTokenizerBase) -> Removal:
    """Return how leave-one-out leaves a token out: a mask token replaces it, or it is removed if there is none."""
    return "remove" if tokenizer.mask_token_id is None else "mask"


def row_of(model: PreTrainedModel, explained: Explained, attention: Attention) -> Row:
    """Return which row of the attention speaks of the answer.

    A decoder reads its answer from the last token, a masked language model from the hole, an encoder-decoder from the
    tokens of the target (their mean). A classifier reads the first token, or the mean of all if it pools them.
    """
    if explained.what in ("masked", "target"):
        return "hole" if explained.what == "masked" else "target"
    if attention.kind in ("causal", "cross"):  # a classifier of an encoder-decoder answers from its last token, too
        return "last"
    pooled = explained.what == "vector" or getattr(model.config, "classifier_pooling", "cls") in ("mean", "late")
    return "mean" if pooled else "first"


def rows_read(row: Row, explained: Explained, length: int) -> list[int]:
    """Return the numbers of the rows that `row` names; their mean is read."""
    if row in ("hole", "target"):
        return list(explained.positions)
    return {"first": [0], "last": [length - 1], "mean": list(range(length))}[row]


def summarize(texts: Sequence[TextFaithfulness], row: Row, removal: Removal) -> Faithfulness:
    """Average the correlations over texts, with intervals."""
    long = [text for text in texts if len(text.tokens) >= MIN_TOKENS]
    found = [text.correlations() for text in long]
    methods = {}
    for name in dict.fromkeys(name for correlations in found for name in correlations):
        values = np.array([correlations[name] for correlations in found if name in correlations])
        methods[name] = estimate(values[~np.isnan(values)], within=(-1, 1))
    heads = [[[rank_correlation(head, text.left_out) for head in layer] for layer in text.heads] for text in long]
    return Faithfulness(methods, _mean(heads), list(texts), len(texts) - len(long), row, removal)


def _mean(values_NLH: list[list[list[float]]]) -> np.ndarray:
    """Return the mean over the texts that have a correlation: (layers, heads)."""
    if not values_NLH:
        return np.zeros((0, 0))
    values = np.array(values_NLH)
    there = ~np.isnan(values)
    sums, counts = np.where(there, values, 0).sum(0), there.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
