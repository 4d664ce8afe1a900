"""Choose the outputs of a model that ablation, attribution and leave-one-out explain, and compute them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.errors import UserError

What = Literal["label", "next", "masked", "target", "vector"]
LOGITS_PER_BATCH = 64_000_000  # numbers, 256 MB
TOKENS_PER_BATCH = 8192
OF_THE_SOURCE = ("input_ids", "attention_mask", "token_type_ids")  # as long as the text


@dataclass(frozen=True)
class Explained:
    """Hold one text as the model reads it, and which of its outputs are explained.

    what: the `label` of a classifier, `next` tokens of a decoder, tokens at `masked` positions of an encoder, tokens of
        the `target` of an encoder-decoder, or the `vector` of a model without a head: the mean of its last hidden
        states (Reimers and Gurevych 2019, section 3).
    inputs: what the model reads: tensors (1, length), and options.
    positions, ids: which rows of the logits are scored, and the token or class that is scored there. A classifier has
        one row, number 0. Negative positions count from the end, so they hold when a token is removed.
    vector: (hidden size) of the whole text, for `vector`; its score is a cosine, not a log probability.
    """

    what: What
    inputs: dict[str, Any]
    positions: tuple[int, ...]
    ids: tuple[int, ...]
    vector: Tensor | None = None

    @property
    def ids_1L(self) -> Tensor:
        """Return the token ids of the text: (1, length); of an encoder-decoder those of the source."""
        return self.inputs["input_ids"]

    def scores(self, model: PreTrainedModel, rows: int = 1, **changed: Tensor) -> Tensor:
        """Return the log probability of each explained output, (rows, outputs); of a vector its cosine.

        rows: how many copies of the text. changed: inputs that replace those of the text, (rows, length).
        """
        copies = {
            name: value.expand(rows, -1) if isinstance(value, Tensor) else value
            for name, value in (self.inputs | changed).items()
        }
        outputs = model(**copies, **without_cache(model))
        if self.vector is not None:
            return torch.cosine_similarity(vector_of(outputs), self.vector, dim=-1)[:, None]
        logits_BPV = outputs.logits[:, None] if self.what == "label" else outputs.logits[:, list(self.positions)]
        ids_BP1 = torch.tensor(self.ids, device=logits_BPV.device).expand(rows, -1)[..., None]
        return (logits_BPV.gather(-1, ids_BP1)[..., 0] - logits_BPV.logsumexp(-1)).float()

    def chunks(self, model: PreTrainedModel, number: int) -> Iterator[slice]:
        """Cut `number` copies of the text into slices of which each fits into one forward pass."""
        size = self.rows_per_pass(model)
        return (slice(start, min(start + size, number)) for start in range(0, number, size))

    def rows_per_pass(self, model: PreTrainedModel) -> int:
        """Return how many copies of the text fit into one forward pass."""
        length = max(value.shape[1] for value in self.inputs.values() if isinstance(value, Tensor))
        width = 1 if self.what in ("label", "vector") else model.config.get_text_config().vocab_size
        return max(1, min(TOKENS_PER_BATCH // length, LOGITS_PER_BATCH // (length * width)))


def without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """Return the option that keeps a model from remembering keys and values, if it knows it."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def vector_of(outputs: Any) -> Tensor:
    """Return the mean of the last hidden states: (batch, hidden size)."""
    return outputs[0].float().mean(dim=1)


@torch.no_grad()
def what_is_explained(model: PreTrainedModel, inputs: dict[str, Any]) -> What:
    """Return what kind of output a model has. The outputs are asked, so code from the hub works too.

    A language model reads from left to right if no earlier logits move when its last token changes.
    Raises UserError for outputs that are no answer to a whole text: labels of words, spans, choices, a regression.
    """
    config = model.config
    if inputs["input_ids"].shape[1] < 2:
        inputs = {name: _twice(value) if name in OF_THE_SOURCE else value for name, value in inputs.items()}
    outputs = model(**inputs)
    logits = outputs.get("logits")
    if logits is None and "start_logits" not in outputs and not config.is_encoder_decoder:
        return "vector"
    if logits is not None and logits.dim() == 2:
        if logits.shape[-1] > 1 and getattr(config, "problem_type", None) in (None, "single_label_classification"):
            return "label"
    elif logits is not None and model.get_output_embeddings() is not None:
        if config.is_encoder_decoder:
            return "target"
        other_1L = inputs["input_ids"].clone()
        other_1L[0, -1] = (other_1L[0, -1] + 1) % model.get_input_embeddings().num_embeddings
        moved = (model(**inputs | {"input_ids": other_1L}).logits - logits)[:, :-1].abs().max()
        return "next" if moved <= 1e-5 * logits.abs().max() else "masked"
    raise UserError(
        f"{type(model).__name__} gives no single answer to a text; use a language model, a classifier with one label a "
        "text, or an encoder without a head"
    )


@torch.no_grad()
def own_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Any]) -> Explained:
    """Return the model's own answer to a text, as the output to explain.

    inputs: what the model reads. The answer of an encoder-decoder are the tokens of `decoder_input_ids`, which begin
    with the start token.
    Raises UserError as `what_is_explained` does, and for a masked language model and a text without a hole.
    """
    what = what_is_explained(model, inputs)
    if what == "target":
        return target_of(inputs)
    outputs = model(**inputs)
    if what == "vector":
        return Explained(what, inputs, (0,), (0,), vector_of(outputs)[0])
    if what == "label":  # an encoder-decoder shifts the text for its decoder itself
        inputs = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
        return Explained(what, inputs, (0,), (int(outputs.logits[0].argmax()),))
    if what == "next":
        return Explained(what, inputs, (-1,), (int(outputs.logits[0, -1].argmax()),))
    mask = mask_of(tokenizer)
    holes = (inputs["input_ids"][0] == mask).nonzero()[:, 0].tolist()
    if not holes:
        raise UserError(f"the text has no hole; mark the token to explain with {tokenizer.mask_token}")
    return Explained(what, inputs, tuple(holes), tuple(outputs.logits[0, holes].argmax(-1).tolist()))


def target_of(inputs: dict[str, Any]) -> Explained:
    """Explain each token of the target that follows the start token. Row i of the logits predicts token i + 1.

    Raises UserError for an empty target.
    """
    target = inputs["decoder_input_ids"][0].tolist()
    if len(target) < 2:
        raise UserError("the target is empty: there is no token to explain")
    return Explained("target", inputs, tuple(range(len(target) - 1)), tuple(target[1:]))


def mask_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the mask token. Raises UserError if there is none."""
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token; use a masked language model with the tokenizer it was trained on"
        )
    return tokenizer.mask_token_id


@contextmanager
def numbered(number: int, texts: int) -> Iterator[None]:
    """Say in an error which of several texts it is about. number: from 0."""
    try:
        yield
    except UserError as error:
        if texts == 1:
            raise
        raise UserError(f"text {number + 1}: {error}") from error


def _twice(value: Any) -> Any:
    return value.repeat(1, 2) if isinstance(value, Tensor) else value
