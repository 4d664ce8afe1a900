"""Switch off one attention head at a time and measure how much worse the model predicts.

Michel, Levy and Neubig 2019 (arXiv:1905.10650), section 3.2. The output of a head is replaced before the output
projection, as if the columns of the projection that read it were zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.errors import UserError
from decero.explain.capture import call_order, editing
from decero.explain.estimates import TextMean, estimate
from decero.explain.explained import Explained, What, mask_of, numbered, own_answer, target_of, what_is_explained
from decero.explain.record import accepted, as_recorded, read_texts
from decero.explain.recording import Kind

Text = str | tuple[str, str]  # one text, or a pair
Replacement = Literal["zero", "mean"]
MASKED = 0.15  # of the tokens that a reader wrote, at least one
LOSSES: dict[What, dict[str, str]] = {
    "label": {
        "en": "loss of the given labels, or of the label that the whole model gives",
        "es": "pérdida de las etiquetas dadas, o de la que da el modelo entero",
    },
    "next": {"en": "loss of each next token", "es": "pérdida de cada token siguiente"},
    "masked": {
        "en": "loss of the masked tokens: 15 % of each text, drawn once by the seed",
        "es": "pérdida de los tokens ocultos: el 15 % de cada texto, sorteado una vez por la semilla",
    },
    "target": {"en": "loss of the tokens of the target", "es": "pérdida de los tokens de la traducción"},
    "vector": {
        "en": "1 minus the cosine with the vector of the whole model: a distance, never below 0",
        "es": "1 menos el coseno con el vector del modelo entero: una distancia, nunca menor que 0",
    },
}


@dataclass(frozen=True)
class HeadEffect:
    """Hold what one head is worth: the change of the loss without it, in nats a token, mean over texts."""

    kind: Kind
    layer: int
    head: int
    change: TextMean


@dataclass(frozen=True)
class Ablation:
    """Hold the effect of every head on the loss.

    heads: the head that the model misses most comes first. Each interval is for its head alone: among many heads some
        are off zero by luck.
    loss: of the whole model, in nats a scored output, mean over texts.
    replacement: `zero`, or the `mean` of the head's output over all tokens of the texts.
    """

    what: What
    replacement: Replacement
    loss: float
    texts: int
    heads: list[HeadEffect]

    def map(self, kind: Kind) -> np.ndarray:
        """Return the changes of all heads of a kind: (layers, heads)."""
        effects = [effect for effect in self.heads if effect.kind == kind]
        shape = [1 + max((getattr(effect, axis) for effect in effects), default=-1) for axis in ("layer", "head")]
        changes = np.full(shape, np.nan)
        for effect in effects:
            changes[effect.layer, effect.head] = effect.change.mean
        return changes

    def describe(self, language: str) -> str:
        """Say which loss was measured."""
        return LOSSES[self.what][language]


@dataclass(frozen=True)
class _Head:
    kind: Kind
    layer: int
    call: int  # number of the attention call in a forward pass
    head: int


def ablate_heads(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], *,
    replacement: Replacement = "zero", targets: Sequence[str] | None = None, labels: Sequence[int] | None = None,
    seed: int = 0, done: Callable[[int], Any] = lambda texts: None,
) -> Ablation:  # fmt: skip
    """Measure the change of the model's own loss over the texts for every head, each switched off alone.

    The loss is that of each next token (decoder), of masked tokens (encoder: 15 % of each text, drawn once by `seed`),
    of the target (encoder-decoder: `targets`, else what the model writes), of the label (classifier: `labels`, else the
    label that it gives), or the distance from the text's own vector (no head). done: called with the number of each
    finished text.

    The heads of a text run side by side, as rows of one batch without padding.
    Raises UserError: no text; a family with attention code of its own; a text without an output to score; targets or
    labels that are not as many as the texts; a label that is not there.
    """
    for name, given in (("targets", targets), ("labels", labels)):
        if given is not None and len(given) != len(texts):
            raise UserError(f"{len(given)} {name} for {len(texts)} texts; give one for each text")
    if not texts:
        raise UserError("ablation needs a text")
    with as_recorded(model), torch.no_grad():
        scored = []
        for number, text in enumerate(texts):
            target = targets[number] if targets else None
            label = None if labels is None else labels[number]
            with numbered(number, len(texts)):
                scored.append(scored_by_loss(model, tokenizer, text, number, target=target, label=label, seed=seed))
        heads = _heads_of(model, scored[0])
        means = _mean_outputs(model, scored) if replacement == "mean" else {}
        losses, changes = np.zeros(len(texts)), np.zeros((len(heads), len(texts)))
        for number, each in enumerate(scored):
            losses[number] = _loss(each.scores(model))[0]
            changes[:, number] = _losses_without(model, each, heads, means) - losses[number]
            done(number + 1)
    effects = [
        HeadEffect(each.kind, each.layer, each.head, estimate(row)) for each, row in zip(heads, changes, strict=True)
    ]
    loss = 0.0 if scored[0].what == "vector" else float(losses.mean())  # the text is at no distance from itself
    return Ablation(scored[0].what, replacement, loss, len(texts), sorted(effects, key=lambda each: -each.change.mean))


def scored_by_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Text, number: int, *,
    target: str | None = None, label: int | None = None, seed: int = 0,
) -> Explained:  # fmt: skip
    """Return the outputs whose mean negative log probability is the model's own loss on a text.

    number: of the text, from 0; it draws the masked tokens together with `seed`.
    """
    first, second = text if isinstance(text, tuple) else (text, None)
    source, decoder, _ = read_texts(model, tokenizer, first, second, target)
    inputs = accepted(model, source.inputs | (decoder.inputs if decoder else {}))
    what = what_is_explained(model, inputs)
    if label is not None and what != "label":
        raise UserError(f"{type(model).__name__} is no classifier; give no labels")
    if what == "label" and label is not None:
        labels = len(model.config.id2label or {})
        if not 0 <= label < labels:
            raise UserError(f"no label {label}; there are {labels}, from 0")
        return Explained(what, inputs, (0,), (label,))
    if what in ("label", "vector"):
        return own_answer(model, tokenizer, inputs)
    if what == "target":
        return target_of(inputs)
    ids = inputs["input_ids"][0].tolist()
    if what == "next":
        if len(ids) < 2:
            raise UserError("one token has no next token to predict; give a longer text")
        return Explained(what, inputs, tuple(range(len(ids) - 1)), tuple(ids[1:]))
    written = [i for i, piece in enumerate(source.pieces) if not piece.special and piece.id != tokenizer.mask_token_id]
    if not written:
        raise UserError("the text has no token to mask; give a longer text")
    count = max(1, round(MASKED * len(written)))
    positions = tuple(sorted(np.random.default_rng([seed, number]).permutation(written)[:count].tolist()))
    masked_1L = inputs["input_ids"].clone()
    masked_1L[0, list(positions)] = mask_of(tokenizer)
    return Explained(what, inputs | {"input_ids": masked_1L}, positions, tuple(ids[i] for i in positions))


def _heads_of(model: PreTrainedModel, text: Explained) -> list[_Head]:
    """List all heads with the number of their attention call. Raises UserError for attention code of its own."""
    how = call_order(model, text.inputs)
    if how is None:
        raise UserError(f"this {model.config.model_type} model shows no attention: it has none, or hides it")
    if how.calls is None:
        raise UserError(
            f"this {model.config.model_type} model has attention code of its own; ablation reaches heads through the "
            "attention interface of transformers"
        )
    return [
        _Head(kind, layer, call, head)
        for kind, calls in how.calls.items() for layer, call in enumerate(calls) for head in range(how.heads[kind])
    ]  # fmt: skip


def _mean_outputs(model: PreTrainedModel, scored: list[Explained]) -> dict[int, Tensor]:
    """Return the mean output of each head over all tokens of all texts: call -> (heads, head size)."""
    sums: dict[int, Tensor] = {}
    tokens: dict[int, int] = {}

    def add(call: int, mix_BLHK: Tensor) -> Tensor:
        sums[call] = sums.get(call, torch.zeros_like(mix_BLHK[0, 0])) + mix_BLHK[0].sum(0)
        tokens[call] = tokens.get(call, 0) + mix_BLHK.shape[1]
        return mix_BLHK

    for text in scored:
        with editing(model, add):
            text.scores(model)
    return {call: total / tokens[call] for call, total in sums.items()}


def _losses_without(
    model: PreTrainedModel, text: Explained, heads: list[_Head], means: dict[int, Tensor]
) -> np.ndarray:
    """Return the loss of a text without each of the heads: (heads). means: replaces the outputs; none: zero."""
    losses = []
    for part in text.chunks(model, len(heads)):
        rows: dict[int, list[tuple[int, int]]] = {}
        for row, each in enumerate(heads[part]):
            rows.setdefault(each.call, []).append((row, each.head))
        with editing(model, partial(_without, rows, means)):
            losses.append(_loss(text.scores(model, part.stop - part.start)))
    return np.concatenate(losses)


def _without(rows: dict[int, list[tuple[int, int]]], means: dict[int, Tensor], call: int, mix_BLHK: Tensor) -> Tensor:
    """Replace in each row of the batch the output of the head that the row goes without."""
    if call not in rows:
        return mix_BLHK
    edited_BLHK = mix_BLHK.clone()
    for row, head in rows[call]:
        edited_BLHK[row, :, head] = means[call][head] if means else 0.0
    return edited_BLHK


def _loss(scores_BP: Tensor) -> np.ndarray:
    return -scores_BP.double().mean(1).cpu().numpy()
