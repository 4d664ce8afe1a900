"""Objectives: what the loop needs to know of a task. Rows to a batch, a batch to a summed loss, a batch to its weight.

The loss is a sum, never a mean: the loop divides by the number of scored items of the whole step, on all processes, so
that neither padding nor the cut into micro-batches moves the gradient.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from decero.data.collators import IGNORED

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """collate: rows -> batch. loss: (model, batch) -> the summed loss. count: batch -> items that the sum is over."""

    collate: Callable[[list[dict]], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    count: Callable[[Batch], int]


def masked_lm(collate: Callable[[list[dict]], Batch]) -> Objective:
    """Cross-entropy over the masked tokens."""
    return Objective(collate, masked_lm_loss, lambda batch: int((batch["labels"] != IGNORED).sum()))


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
        return losses[problem_type](logits_of(model, batch).float(), batch["labels"])

    return Objective(collate, loss, lambda batch: len(batch["labels"]))


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits for a batch, its labels kept back."""
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def masked_lm_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Summed cross-entropy over the scored positions, the vocabulary projection done for them alone.

    Any masked language model can be asked this way, ours or stock, for the projection is its `get_output_embeddings()`.
    """
    scored_BL = batch["labels"] != IGNORED
    with projecting_only(model, scored_BL):
        logits_NV = logits_of(model, batch)
    return F.cross_entropy(logits_NV.float(), batch["labels"][scored_BL], reduction="sum")


@contextmanager
def projecting_only(model: nn.Module, scored_BL: Tensor):
    """Inside, the output projection sees only the scored positions: logits are (scored, vocabulary).

    Raises TypeError for a model without output embeddings.
    """
    bare: Any = getattr(model, "module", model)
    projection = bare.get_output_embeddings()
    if projection is None:
        raise TypeError(f"{type(bare).__name__} has no output embeddings to project with")
    hook = projection.register_forward_pre_hook(lambda _, inputs: (inputs[0][scored_BL],))
    try:
        yield
    finally:
        hook.remove()
