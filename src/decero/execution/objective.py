"""Objectives: what the loop needs to know of a task. Rows to a batch, a batch to a summed loss, a batch to its weight.

The loss is a sum, never a mean: the loop divides by the number of scored items of the whole step, on all processes, so
that neither padding nor the cut into micro-batches moves the gradient.
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
from decero.execution.unwrap import unwrap

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """What the training loop knows of a task.

    collate: rows -> batch. loss: (model, batch) -> the summed loss. count: batch -> items that the sum is over.
    per_text: names of tensors that hold one item a text; the others hold one item a token.
    batch_size: (batch, scored items, examples) -> its size. row_lengths: rows -> tokens read and tokens written, both
    (rows,). These two say how large data is, so that loader, forecast and packing read no field by name. A picture is
    one row of length 1.
    packable: whether several rows may share one, as texts do.
    """

    collate: Callable[[list[dict]], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    count: Callable[[Batch], int]
    per_text: tuple[str, ...] = ()
    batch_size: Callable[[Batch, int, int], BatchSize] = text_batch_size
    row_lengths: Callable[[Dataset], tuple[np.ndarray, np.ndarray]] = side_lengths
    packable: bool = True

    @property
    def packed(self) -> bool:
        """Whether batches are packed rows."""
        return isinstance(self.collate, Packed)

    def size(self, batch: Batch, examples: int) -> BatchSize:
        """The size of a collated batch of so many examples."""
        return self.batch_size(batch, self.count(batch), examples)

    def row_sizes(self, rows: Dataset) -> Sizes:
        """The sizes of rows before they are collated."""
        return sizes_of(self.collate, *self.row_lengths(rows))


def masked_lm(collate: Callable[[list[dict]], Batch], scored_queries: bool = True) -> Objective:
    """Cross-entropy over the masked tokens. scored_queries: the last layer computes them alone, where a model can."""
    loss = partial(token_loss, scored_queries=scored_queries)
    return Objective(collate, loss, lambda batch: int((batch["labels"] != IGNORED).sum()))


def classification(collate: Callable[[list[dict]], Batch], problem_type: str) -> Objective:
    """Cross-entropy over classes, binary cross-entropy (mean over labels) or squared error, summed over examples."""
    losses = {
        "single_label_classification": lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum"),
        "multi_label_classification": lambda logits, labels: (
            F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1).sum()
        ),
        "regression": lambda logits, labels: F.mse_loss(logits.squeeze(-1), labels, reduction="sum"),
    }

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return losses[problem_type](logits_of(model, batch, per_text=True).float(), batch["labels"])

    return Objective(collate, loss, lambda batch: len(batch["labels"]), per_text=("labels",))


def language_model(collate: Callable[[list[dict]], Batch], label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy over the tokens that the collator scores: of a decoder, alone or behind an encoder.

    label_smoothing: of the training loss; what is reported as validation loss wants 0.
    """
    loss = partial(token_loss, label_smoothing=label_smoothing)
    return Objective(collate, loss, lambda batch: int((batch["labels"] != IGNORED).sum()))


def token_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0, scored_queries: bool = False) -> Tensor:
    """Summed cross-entropy over the scored positions; labels stand beside the logits that answer them.

    scored_queries: with a model that takes `selected_positions`, the last layer computes those positions alone. The
    loss and its gradient are the same; dropout, which draws for fewer, is another draw.
    The vocabulary projection is done for the scored positions alone, a chunk at a time. Any model can be asked this
    way, ours or stock, for the projection is its `get_output_embeddings()`.
    """
    scored_BL = batch["labels"] != IGNORED
    labels_N = batch["labels"][scored_BL]
    if scored_queries and takes_selected_positions(model):
        places_BS = scored_first(scored_BL)
        batch, scored_BL = batch | {"selected_positions": places_BS}, scored_BL.gather(1, places_BS)
    if not only_projects(model, batch, scored_BL):
        with projecting_only(model, scored_BL):
            logits_NV = logits_of(model, batch)
        if logits_NV.dim() == 3:  # MobileBERT's head reads the weight of its projection and never calls it
            logits_NV = logits_NV[scored_BL]
        return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum", label_smoothing=label_smoothing)
    with hold_projection_input(model, scored_BL) as held:
        logits_of(model, batch)
    projection = held.projection.weight, held.projection.bias
    return linear_cross_entropy(held.hidden, *projection, labels_N, label_smoothing=label_smoothing)


def row_nats(model: nn.Module, batch: Batch) -> Tensor:
    """Summed cross-entropy over the scored positions of each row, (batch,); `token_loss` is their sum."""
    scored_BL = batch["labels"] != IGNORED
    sizes = scored_BL.sum(dim=1).tolist()
    labels = batch["labels"][scored_BL].split(sizes)
    if not only_projects(model, batch, scored_BL):
        with projecting_only(model, scored_BL):
            logits_NV = logits_of(model, batch)
        logits_NV = logits_NV[scored_BL] if logits_NV.dim() == 3 else logits_NV
        pairs = zip(logits_NV.float().split(sizes), labels, strict=True)
        return torch.stack([F.cross_entropy(logits, wanted, reduction="sum") for logits, wanted in pairs])
    with hold_projection_input(model, scored_BL) as held:
        logits_of(model, batch)
    projection = held.projection.weight, held.projection.bias
    pairs = zip(held.hidden.split(sizes), labels, strict=True)
    return torch.stack([linear_cross_entropy(hidden, *projection, wanted) for hidden, wanted in pairs])


def takes_selected_positions(model: nn.Module) -> bool:
    """Whether a model takes `selected_positions`: ours do, with a backend that takes any mask, uncompiled.

    FlexAttention's blocks are not picked apart by place; `choose_attention` takes it for such a model only when asked.
    """
    bare = unwrap(model)
    if "selected_positions" not in inspect.signature(bare.forward).parameters:
        return False
    # `compile_layers`, which wants one shape; the model's own forward is accelerate's to replace (autocast)
    compiled = any("forward" in vars(module) for module in bare.modules() if module is not bare)
    return not compiled and bare.config._attn_implementation in ("sdpa", "eager", "matmul")


def scored_first(scored_BL: Tensor) -> Tensor:
    """(batch, most scored positions of a row): the scored positions of each row in their order, then others."""
    most = int(scored_BL.sum(dim=1).max()) if len(scored_BL) else 0
    return scored_BL.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, most)]


_ONLY_PROJECTS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def only_projects(model: nn.Module, batch: Batch, scored_BL: Tensor) -> bool:
    """Whether logits are what the projection gives. Marian adds a bias, Gemma 2 bends them. Tried once a model."""
    projection = output_projection(model)
    if not scored_BL.any():  # nothing to be told by, and the loss is 0 either way
        return _ONLY_PROJECTS.get(projection, True)
    if projection not in _ONLY_PROJECTS:
        with torch.random.fork_rng(), torch.no_grad(), hold_projection_input(model, scored_BL) as held:
            logits = logits_of(model, batch)
        alone = held.logits is not None and torch.equal(logits, held.logits)
        _ONLY_PROJECTS[projection] = alone and not has_bias_beside(model, projection)
    return _ONLY_PROJECTS[projection]


def has_bias_beside(model: nn.Module, projection: Any) -> bool:
    """Whether the head learns a bias that is not the projection's own (ESM): while it is zero, no logit tells."""
    bare = unwrap(model)
    size = (len(projection.weight),)
    return any(p.shape == size and p is not projection.bias for p in bare.parameters() if p.requires_grad)


def output_projection(model: nn.Module) -> Any:
    """Raises TypeError for a model without output embeddings."""
    bare = unwrap(model)
    projection = bare.get_output_embeddings()
    if projection is None:
        raise TypeError(f"{type(bare).__name__} has no output embeddings to project with")
    return projection


class ProjectionInput:
    """What was held back: the scored hidden states, and what the projection made of the first of them."""

    projection: Any
    hidden: Tensor  # (scored, model)
    logits: Tensor | None = None  # (1, vocabulary)


@contextmanager
def hold_projection_input(model: nn.Module, scored_BL: Tensor):
    """Inside, the output projection sees one scored position only; all hidden states go to a `ProjectionInput`."""
    held = ProjectionInput()
    held.projection = output_projection(model)

    def keep(projection, inputs):
        held.hidden = inputs[0][scored_BL]
        return (held.hidden[:1].detach(),)

    def keep_logits(projection, inputs, logits):
        held.logits = logits

    hooks = [held.projection.register_forward_pre_hook(keep), held.projection.register_forward_hook(keep_logits)]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def projecting_only(model: nn.Module, scored_BL: Tensor):
    """Inside, the output projection sees only the scored positions: logits are (scored, vocabulary).

    Raises TypeError for a model without output embeddings.
    """
    hook = output_projection(model).register_forward_pre_hook(lambda _, inputs: (inputs[0][scored_BL],))
    try:
        yield
    finally:
        hook.remove()
