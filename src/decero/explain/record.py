"""Record what one text shows in a model: attention weights, value norms, hidden states, logits."""

import inspect
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.errors import UserError
from decero.execution.pretrained import one_line
from decero.execution.transformers_internals import attending_with
from decero.explain.capture import CallOrder, call_order, capture, run, unchanged
from decero.explain.pieces import ReadText, encode, encode_target
from decero.explain.recording import Attention, HiddenStates, Kind, Piece, Recording
from decero.explain.residual_stream import Watch, reads_target, watching
from decero.explain.value_norms import value_norms

SAME = 1e-6  # of the largest logit: the same model, recorded and not
CLOSE = 1e-3  # of the largest logit: the attention that a model has, and eager attention
ROWS = 1e-4  # of the sum of a row: float32, thousands of keys
ANSWERS = ("logits", "prediction_logits", "start_logits", "reconstruction", "last_hidden_state")


def record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    text_b: str | None = None,
    target: str | None = None,
    layers: Collection[int] | None = None,
    values: bool = False,
    hidden: bool = False,
) -> Recording:
    """Run a model on one text and return what its attention did, proven.

    text_b: the second text of a pair. target: what the decoder of an encoder-decoder reads; without it the model writes
    one, and a model that cannot write reads the text twice. layers: keep only these, counted from 0. values: also the
    norms of weighted values. hidden: also the residual stream.

    The pass is in evaluation mode, in float32, with eager attention, without cache and padding. Afterwards the model is
    as it was. Proven: the weights are heads x queries x
    keys, rows sum to 1, and the logits are those of the same model without recording, to 1e-6.

    Raises UserError: the model has no attention, or shows something else in its place; the text is longer than the
    model reads; a layer that is not there; a target for a model without a decoder.
    """
    name = model.name_or_path or type(model).__name__
    notes: list[str] = []
    with one_line(str(name)), as_recorded(model, notes):
        if "MultipleChoice" in type(model).__name__:
            notes.append("The head that scores choices is left out: one text alone has none.")
            model = cast(PreTrainedModel, model.base_model)
        source, decoder, target = read_texts(model, tokenizer, text, text_b, target)
        inputs = accepted(model, source.inputs | (decoder.inputs if decoder else {}))
        usual = answer_of(run(model, inputs))
        how = call_order(model, inputs)
        if how is None:
            raise UserError(f"this {model.config.model_type} model shows no attention: it has none, or hides it")
        _check_layers(how, layers)
        with attending_with(model, "eager"):
            before = answer_of(run(model, inputs))
        check_unmoved(model, usual, before, CLOSE, "with eager attention")
        watch = Watch(model, "decoder" if "causal" in how.layers else "encoder") if hidden else None
        weights, calls, outputs = capture(
            model, inputs, how, layers, values=values, watch=watching(model, watch) if watch else None
        )
        check_unmoved(model, before, answer_of(outputs), SAME, "while it is recorded")
        decoder_pieces = decoder.pieces if decoder else source.pieces
        attentions: dict[Kind, Attention] = {}
        for kind, found in weights.items():
            queries = source.pieces if kind == "self" else decoder_pieces
            keys = decoder_pieces if kind == "causal" else source.pieces
            shown = {i: proven(model, each, len(queries), len(keys)) for i, each in found.items()}
            attentions[kind] = Attention(kind, queries, keys, how.layers[kind], how.heads[kind], shown)
            if values:
                attentions[kind].value_norms, why = value_norms(calls.get(kind, {}))
                notes += [f"No value norms of {kind} attention: {why}."] if why else []
        states = {} if watch is None else _hidden(watch, {"encoder": source.pieces, "decoder": decoder_pieces})
        if watch and len(states) < len(watch.stacks):
            notes.append("No hidden states: no list of layers of this family passes one state on.")
        notes += source.notes + (decoder.notes if decoder else []) + _windows(model, attentions)
        logits = getattr(outputs, "logits", None)
        return Recording(
            model=str(name), family=model.config.model_type, text=text, target=target, attentions=attentions,
            hidden=states,
            logits=None if logits is None else _numpy(logits[0] if logits.dim() == 3 else logits),
            notes=list(dict.fromkeys(notes)), text_b=text_b,
        )  # fmt: skip


@contextmanager
def as_recorded(model: PreTrainedModel, notes: list[str] | None = None) -> Iterator[None]:
    """Put a model into evaluation mode and float32 for a while, then put all of it back."""
    tensors = [each for each in (*model.parameters(), *model.buffers()) if each.dtype in (torch.bfloat16, torch.half)]
    stored = [each.data for each in tensors]
    if tensors and notes is not None:
        notes.append(f"The weights are stored in {str(stored[0].dtype).removeprefix('torch.')}, recorded in float32.")
    with unchanged(model):
        try:
            model.eval()
            for each in tensors:
                each.data = each.data.float()
            yield
        finally:
            for each, data in zip(tensors, stored, strict=True):
                each.data = data


def read_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, text_b: str | None, target: str | None
) -> tuple[ReadText, ReadText | None, str | None]:
    """Tokenize source and target. Raises UserError for a second text or a target that the model cannot read."""
    two = reads_target(model)
    if target is not None and not two:
        raise UserError(f"{type(model).__name__} has no decoder beside an encoder: give no target")
    source = encode(model, tokenizer, text, text_b)
    if not two:
        return source, None, None
    decoder, target = encode_target(model, tokenizer, target, text, source.inputs)
    return source, decoder, target


def accepted(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Leave out what the forward pass of a model does not read."""
    parameters = inspect.signature(model.forward).parameters
    return {name: each for name, each in inputs.items() if name in parameters}


def answer_of(outputs: Any) -> Tensor:
    """Return the logits of a model, or its last hidden state when it has no head."""
    return next(each for name in ANSWERS if (each := getattr(outputs, name, None)) is not None)


def _check_layers(how: CallOrder, layers: Collection[int] | None) -> None:
    most = max(how.layers.values())
    for layer in layers or ():
        if not 0 <= layer < most:
            raise UserError(f"there is no layer {layer}: the model has {most}, counted from 0 to {most - 1}")


def check_unmoved(model: PreTrainedModel, before: Tensor, after: Tensor, most: float, when: str) -> None:
    moved = float((before - after).abs().nan_to_num(math.inf).max())
    if moved > most * max(1.0, float(before.abs().max())):
        family = model.config.model_type
        raise UserError(f"this {family} model computes something else {when}: logits move by {moved:.2g}")


def proven(model: PreTrainedModel, weights: Any, queries: int, keys: int) -> np.ndarray:
    """Return (heads, queries, keys). Raises UserError for what is not attention from each token to each token."""
    family = f"this {model.config.model_type} model"
    if not isinstance(weights, Tensor) or weights.dim() != 4 or tuple(weights.shape[-2:]) != (queries, keys):
        shape = " x ".join(map(str, weights.shape[1:])) if isinstance(weights, Tensor) else type(weights).__name__
        raise UserError(f"{family} shows no weights of heads x {queries} queries x {keys} keys, but {shape}")
    rows = weights[0].float()
    least, most = float(rows.sum(-1).min()), float(rows.sum(-1).max())
    if not (most <= 1 + ROWS and float(rows.min()) >= 0):
        raise UserError(f"{family} shows rows that are no attention: they sum to {least:.3g} to {most:.3g}, not to 1")
    if not least >= 1 - ROWS:
        raise UserError(f"{family} shows a part of its attention only: rows sum to {least:.3g} to {most:.3g}, not to 1")
    return _numpy(rows)


def _windows(model: PreTrainedModel, kinds_shown: Collection[str]) -> list[str]:
    config: Any = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    kinds = getattr(config, "layer_types", None) or ()
    local = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    if not window or not local:
        return []
    if not model.config.is_encoder_decoder and "self" in kinds_shown:  # in both directions
        window = 2 * (getattr(config, "sliding_window", None) or window // 2) + 1
    one = len(local) == 1
    which = f"Layer{'s' * (not one)} {', '.join(map(str, local))} see{'s' * one}"
    return [f"{'Every layer sees' if len(local) == len(kinds) else which} a window of {window} tokens only."]


def _hidden(watch: Watch, pieces: dict[str, list[Piece]]) -> dict[str, HiddenStates]:
    """Return the residual stream of each stack whose layers were found."""
    hidden: dict[str, HiddenStates] = {}
    for name in watch.stacks:
        if calls := watch.layers(name):
            streams = [calls[0].read, *(call.written for call in calls)]
            states = [_numpy(each.reshape(-1, each.shape[-1])) for each in streams]
            hidden[name] = HiddenStates(name, pieces[name], states, watch.is_last(name, calls[-1]))
    return hidden


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
