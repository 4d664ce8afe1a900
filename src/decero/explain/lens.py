"""Read the state after each layer with the model's own head: the logit lens (nostalgebraist 2020).

The final norm and the head are not looked for by name. The layers are: a list of modules, each of which reads what the
last one wrote. Then the model runs once more a layer, its layers return what they returned before, and the last one
returns the state that is asked about. All that follows, norms, projections, scales, caps, is the model's own code, and
no state is normed twice. The last row must be the model's own logits, or the model is refused.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.errors import UserError
from decero.execution.pretrained import one_line
from decero.execution.transformers_internals import attending_with
from decero.explain.capture import run
from decero.explain.pieces import token_text
from decero.explain.record import accepted, answer_of, as_recorded, read_texts
from decero.explain.recording import Piece
from decero.explain.residual_stream import LayerCall, Watch, watching, with_first

SAME = 1e-5  # of the largest logit


@dataclass
class Lens:
    """Hold what the model would answer after each layer.

    pieces: the tokens on the columns. ids, probabilities: (layers + 1, length, k), likeliest first; row 0 is before the
    first layer, the last row is the model's own answer. texts: token id -> its text, for all of `ids`.
    ranks: (layers + 1, length), 1 where the final answer is already the likeliest token.
    predicts: `next` token, of a model that writes, or the `same` position, of one that fills holes.
    """

    pieces: list[Piece]
    ids: np.ndarray
    probabilities: np.ndarray
    ranks: np.ndarray
    texts: dict[int, str]
    predicts: str
    target: str | None = None


def lens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, target: str | None = None, top_k: int = 5
) -> Lens:
    """Return what the model would answer after each layer, for each position.

    target: what the decoder of an encoder-decoder reads, as for `record`.

    Raises UserError: the model has no head over a vocabulary; its layers cannot be found; the last row would not be its
    own logits; and for texts as `record` does.
    """
    name = model.name_or_path or type(model).__name__
    with one_line(str(name)), as_recorded(model), attending_with(model, "eager"):
        source, decoder, target = read_texts(model, tokenizer, text, None, target)
        inputs = accepted(model, source.inputs | (decoder.inputs if decoder else {}))
        pieces = decoder.pieces if decoder else source.pieces
        family = f"this {model.config.model_type} model"
        watch = Watch(model, "decoder")
        with watching(model, watch):
            logits_LV = _logits(model, inputs)
        if logits_LV is None or logits_LV.shape[0] != len(pieces) or logits_LV.shape[1] < len(tokenizer) // 2:
            raise UserError(f"{family} has no head over a vocabulary: a lens has nothing to look through")
        calls = watch.layers("decoder")
        if not calls:
            raise UserError(f"{family}: cannot find its layers: no list of modules passes one state on")
        answer_L = logits_LV.argmax(-1)
        rows = []
        for stream in (calls[0].read, *(call.written for call in calls)):
            with returning_instead(calls, stream):
                row_LV = _logits(model, inputs)
            rows.append(_row(row_LV, answer_L, top_k))
        if float((row_LV - logits_LV).abs().max()) > SAME * max(1.0, float(logits_LV.abs().max())):
            raise UserError(f"{family}: the lens is not the model: its last row has other logits")
    ids, probabilities, ranks = (np.stack(each) for each in zip(*rows, strict=True))
    texts = {int(each): token_text(tokenizer, int(each)) for each in np.unique(ids)}
    predicts = "next" if model.can_generate() else "same"
    return Lens(pieces, ids, probabilities, ranks, texts, predicts, target)


def _logits(model: PreTrainedModel, inputs: dict[str, Any]) -> Any:
    """Return (length, vocabulary) in float32, or None for a model that has no such logits."""
    outputs = run(model, inputs)
    logits = answer_of(outputs)
    return (
        logits[0].float() if logits.dim() == 3 and logits is not getattr(outputs, "last_hidden_state", None) else None
    )


def _row(logits_LV: Tensor, answer_L: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the likeliest tokens, their probabilities, and the rank of the answer."""
    top = logits_LV.softmax(-1).topk(min(top_k, logits_LV.shape[-1]))
    of_answer_L1 = logits_LV.gather(1, answer_L[:, None])
    ranks_L = (logits_LV > of_answer_L1).sum(-1) + 1
    return top.indices.cpu().numpy(), top.values.cpu().numpy(), ranks_L.cpu().numpy()


@contextmanager
def returning_instead(calls: list[LayerCall], stream: Tensor) -> Iterator[None]:
    """Let each layer return what it returned before without computing it, and the last one `stream`."""
    answers: dict[int, list[Any]] = {}
    for call in calls[:-1]:
        answers.setdefault(id(call.module), []).append(call.returned)
    answers.setdefault(id(calls[-1].module), []).append(with_first(calls[-1].returned, stream))
    modules = {id(call.module): call.module for call in calls}

    def answering(module: torch.nn.Module) -> Any:
        waiting = iter(answers[id(module)])
        return lambda *args, **kwargs: next(waiting)

    with ExitStack() as stack:
        for module in modules.values():
            before = module.__dict__.get("forward")
            module.forward = answering(module)  # type: ignore[method-assign]
            stack.callback(_put_back, module, before)
        yield


def _put_back(module: torch.nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward  # type: ignore[method-assign]
