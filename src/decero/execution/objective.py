"""Define objectives: rows -> batch, batch -> summed loss, batch -> number of scored items.

The loss is a sum, never a mean. The loop divides it by the number of scored items of the whole step on all processes,
so neither padding nor the split into micro-batches changes the gradient.
"""

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from decero.data.collators import IGNORED
from decero.data.packing import Packed
from decero.data.sizes import BatchSize, Sizes, sizes_of, text_batch_size
from decero.data.tokenization import side_lengths
from decero.execution.linear_cross_entropy import linear_cross_entropy
from decero.execution.packed_forward import logits_of
from decero.execution.transformers_internals import attention_of
from decero.execution.unwrap import unwrap

Batch = dict[str, Tensor]


def pooled_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of a head that pools, (texts, labels)."""
    return logits_of(model, batch, per_text=True)


@dataclass(frozen=True)
class Objective:
    """Describe a task to the training loop.

    collate: rows -> batch. loss: (model, batch) -> summed loss. count: batch -> number of items in the sum, or the sum
    of their weights.
    per_text: names of tensors with one item per text; the others have one item per token.
    batch_size: (batch, scored items, examples) -> its size. row_lengths: rows -> tokens read and tokens written, both
    (rows,). With these two, loader, forecast and packing need no field names. An image is one row of length 1.
    packable: whether several rows, such as texts, may be packed into one.
    logits: (model, batch) -> what a prediction is made of, (batch, ...); by default the logits of a head that pools.
    unit: what `row_lengths` counts: tokens, or pictures.
    teacher: the model that the loss runs beside the trained one, forward only; forecasts count it.
    """

    collate: Callable[[list[dict]], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    count: Callable[[Batch], float]
    per_text: tuple[str, ...] = ()
    batch_size: Callable[[Batch, float, int], BatchSize] = text_batch_size
    row_lengths: Callable[[Dataset], tuple[np.ndarray, np.ndarray]] = side_lengths
    packable: bool = True
    logits: Callable[[nn.Module, Batch], Tensor] = pooled_logits
    unit: str = "tokens"
    teacher: nn.Module | None = None

    @property
    def packed(self) -> bool:
        """Return whether batches are packed rows."""
        return isinstance(self.collate, Packed)

    def size(self, batch: Batch, examples: int) -> BatchSize:
        """Return the size of a collated batch of `examples` examples."""
        return self.batch_size(batch, self.count(batch), examples)

    def row_sizes(self, rows: Dataset) -> Sizes:
        """Return the sizes of rows before they are collated."""
        return sizes_of(self.collate, *self.row_lengths(rows))


def masked_lm(collate: Callable[[list[dict]], Batch], scored_queries: bool = True, packable: bool = True) -> Objective:
    """Score masked tokens, or targets, by cross-entropy.

    scored_queries: compute only the scored positions in the last layer, if the model supports it.
    """
    loss = partial(token_loss, scored_queries=scored_queries)
    return Objective(collate, loss, lambda batch: int((batch["labels"] != IGNORED).sum()), packable=packable)


LABEL_LOSSES: dict[str, Callable[..., Tensor]] = {  # problem type -> (logits, labels, weights) -> summed loss
    "single_label_classification": lambda logits, labels, weight=None: F.cross_entropy(
        logits, labels, weight, reduction="sum"
    ),
    "multi_label_classification": lambda logits, labels, weight=None: (
        F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none").mean(dim=-1).sum()
    ),
    "regression": lambda logits, labels, weight=None: F.mse_loss(logits.squeeze(-1), labels, reduction="sum"),
}


def classification(
    collate: Callable[[list[dict]], Batch], problem_type: str, weights: np.ndarray | None = None
) -> Objective:
    """Sum over examples: cross-entropy, binary cross-entropy (mean over labels) or squared error.

    weights: of labels, (labels,), from `class_weights`. They multiply the loss of their examples (of the positive
    ones, with several labels). The divisor of a step is then the sum of the weights in it, so it stays a weighted mean.
    """
    weight_K = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = logits_of(model, batch, per_text=True).float()
        weight = None if weight_K is None else weight_K.to(logits.device)
        return LABEL_LOSSES[problem_type](logits, batch["labels"], weight)

    def count(batch: Batch) -> float:
        labels = batch["labels"].cpu()
        if weight_K is None:
            return len(labels)
        if problem_type == "single_label_classification":
            return float(weight_K[labels].sum())
        return float(torch.where(labels > 0, weight_K, 1.0).mean(dim=-1).sum())

    return Objective(collate, loss, count, per_text=("labels",))


def language_model(collate: Callable[[list[dict]], Batch], label_smoothing: float = 0.0) -> Objective:
    """Score the tokens of a decoder, with or without an encoder, by cross-entropy. The collator selects them.

    label_smoothing: for the training loss; use 0 for the reported validation loss.
    """
    loss = partial(token_loss, label_smoothing=label_smoothing)
    return Objective(collate, loss, lambda batch: int((batch["labels"] != IGNORED).sum()))


def token_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0, scored_queries: bool = False) -> Tensor:
    """Sum the cross-entropy over the scored positions. Labels are aligned with the logits that predict them.

    scored_queries: with a model that takes `selected_positions`, the last layer computes only those positions. The
    loss and its gradient do not change; dropout draws other numbers, because it draws fewer.

    Only scored positions are projected to the vocabulary, a chunk at a time. This works for decero and stock models,
    because the projection is `get_output_embeddings()`.
    """
    scored_BL = batch["labels"] != IGNORED
    labels_N = batch["labels"][scored_BL]
    batch, scored_BL = select_scored(model, batch, scored_BL) if scored_queries else (batch, scored_BL)
    if not only_projects(model, batch, scored_BL):
        logits_NV = scored_logits(model, batch, scored_BL)
        return F.cross_entropy(logits_NV, labels_N, reduction="sum", label_smoothing=label_smoothing)
    with capture_projection_input(model, scored_BL) as captured:
        logits_of(model, batch)
    projection = captured.projection.weight, captured.projection.bias
    return linear_cross_entropy(captured.hidden, *projection, labels_N, label_smoothing=label_smoothing)


def select_scored(model: nn.Module, batch: Batch, scored_BL: Tensor) -> tuple[Batch, Tensor]:
    """Let the last layer compute only scored positions, if the model can. Returns the batch, and which are scored."""
    if not takes_selected_positions(model):
        return batch, scored_BL
    places_BS = scored_first(scored_BL)
    return batch | {"selected_positions": places_BS}, scored_BL.gather(1, places_BS)


def scored_logits(model: nn.Module, batch: Batch, scored_BL: Tensor) -> Tensor:
    """Return the logits of the scored positions, (scored, vocabulary) in fp32."""
    with projecting_only(model, scored_BL):
        logits_NV = logits_of(model, batch)
    if logits_NV.dim() == 3:  # MobileBERT's head uses the weight of its projection without calling it
        logits_NV = logits_NV[scored_BL]
    return logits_NV.float()


def row_nats(model: nn.Module, batch: Batch) -> Tensor:
    """Summed cross-entropy over the scored positions of each row, (batch,); `token_loss` is their sum."""
    scored_BL = batch["labels"] != IGNORED
    sizes = scored_BL.sum(dim=1).tolist()
    labels = batch["labels"][scored_BL].split(sizes)
    if not only_projects(model, batch, scored_BL):
        pairs = zip(scored_logits(model, batch, scored_BL).split(sizes), labels, strict=True)
        return torch.stack([F.cross_entropy(logits, wanted, reduction="sum") for logits, wanted in pairs])
    with capture_projection_input(model, scored_BL) as captured:
        logits_of(model, batch)
    projection = captured.projection.weight, captured.projection.bias
    pairs = zip(captured.hidden.split(sizes), labels, strict=True)
    return torch.stack([linear_cross_entropy(hidden, *projection, wanted) for hidden, wanted in pairs])


def takes_selected_positions(model: nn.Module) -> bool:
    """Return whether a model supports `selected_positions`: decero models with a dense mask.

    FlexAttention's block masks cannot be indexed by position. So `choose_attention` gives it to such a model only if
    requested.
    """
    bare = unwrap(model)
    if "selected_positions" not in inspect.signature(bare.forward).parameters:
        return False
    # `compile_layers` leaves the last layer as it is. accelerate replaces the model's own forward.
    replaced = any("forward" in vars(module) for module in bare.base_model.layers[-1].modules())
    return not replaced and attention_of(bare) in ("sdpa", "eager", "matmul")


def scored_first(scored_BL: Tensor) -> Tensor:
    """Return the scored positions of each row in order, then others: (batch, most scored positions of a row)."""
    most = int(scored_BL.sum(dim=1).max()) if len(scored_BL) else 0
    return scored_BL.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, most)]


def scored_only(hidden_BLD: Tensor, scored_BL: Tensor) -> Tensor:
    """Return the hidden states of the scored positions, (scored, model).

    Selected by number: the gradient of `hidden_BLD[scored_BL]` sorts all indices, in case one occurs twice.
    """
    if hidden_BLD.shape[:-1] != scored_BL.shape:
        raise IndexError(f"hidden states {tuple(hidden_BLD.shape)} do not match labels {tuple(scored_BL.shape)}")
    return hidden_BLD.flatten(0, -2).index_select(0, scored_BL.flatten().nonzero()[:, 0])


_ONLY_PROJECTS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def only_projects(model: nn.Module, batch: Batch, scored_BL: Tensor) -> bool:
    """Return whether logits are the plain output of the projection; checked once per model.

    Marian adds a bias, Gemma 2 applies a soft cap.
    """
    projection = output_projection(model)
    if not scored_BL.any():  # nothing to compare, and the loss is 0 in any case
        return _ONLY_PROJECTS.get(projection, True)
    if projection not in _ONLY_PROJECTS:
        with torch.random.fork_rng(), torch.no_grad(), capture_projection_input(model, scored_BL) as captured:
            logits = logits_of(model, batch)
        same = captured.logits is not None and torch.equal(logits, captured.logits)
        _ONLY_PROJECTS[projection] = same and not has_separate_bias(model, projection)
    return _ONLY_PROJECTS[projection]


def has_separate_bias(model: nn.Module, projection: Any) -> bool:
    """Return whether the head has a trainable bias outside the projection (ESM). A zero bias shows in no logit."""
    bare = unwrap(model)
    size = (len(projection.weight),)
    return any(p.shape == size and p is not projection.bias for p in bare.parameters() if p.requires_grad)


def output_projection(model: nn.Module) -> Any:
    """Return the output embeddings. Raises TypeError for a model without them."""
    bare = unwrap(model)
    projection = bare.get_output_embeddings()
    if projection is None:
        raise TypeError(f"{type(bare).__name__} has no output embeddings to project with")
    return projection


class ProjectionInput:
    """Captured by `capture_projection_input`: the scored hidden states, and the logits of the first one."""

    projection: Any
    hidden: Tensor  # (scored, model)
    logits: Tensor | None = None  # (1, vocabulary)


@contextmanager
def capture_projection_input(model: nn.Module, scored_BL: Tensor):
    """Project only one scored position inside, and capture all scored hidden states in a `ProjectionInput`."""
    captured = ProjectionInput()
    captured.projection = output_projection(model)

    def capture_hidden(projection, inputs):
        captured.hidden = scored_only(inputs[0], scored_BL)
        return (captured.hidden[:1].detach(),)

    def capture_logits(projection, inputs, logits):
        captured.logits = logits

    hooks = [
        captured.projection.register_forward_pre_hook(capture_hidden),
        captured.projection.register_forward_hook(capture_logits),
    ]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def projecting_only(model: nn.Module, scored_BL: Tensor):
    """Project only the scored positions inside: logits are (scored, vocabulary).

    Raises TypeError for a model without output embeddings.
    """
    hook = output_projection(model).register_forward_pre_hook(lambda _, inputs: (scored_only(inputs[0], scored_BL),))
    try:
        yield
    finally:
        hook.remove()
