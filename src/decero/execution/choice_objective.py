"""Objectives over choices: a softmax over the scores of a row's choices, or their likelihoods as text."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decero.data.choice_rows import continuation_lengths, right_lengths
from decero.execution.objective import Batch, Objective, language_model, row_nats
from decero.execution.packed_forward import logits_of


def by_row(scores_N: Tensor, num_choices_B: Tensor) -> Tensor:
    """Lay the scores of all choices out by row: (batch, most choices), -inf where a row has fewer."""
    inside_BC = torch.arange(int(num_choices_B.max()), device=scores_N.device) < num_choices_B[:, None]
    return scores_N.new_full(inside_BC.shape, -torch.inf).masked_scatter(inside_BC, scores_N)


def choice_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the scores of a head, (batch, most choices)."""
    return by_row(logits_of(model, batch, per_text=True).float().squeeze(-1), batch["num_choices"])


def choice_likelihoods(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log-probability of each choice behind its prompt, in nats, summed over its tokens."""
    texts = {name: tensor for name, tensor in batch.items() if name != "num_choices"}
    return by_row(-row_nats(model, texts).float(), batch["num_choices"])


def choice(collate: Callable[[list[dict]], Batch]) -> Objective:
    """Cross-entropy of the right choice among those of its row, summed over rows (Devlin et al. 2019, section 4.4)."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(choice_logits(model, batch), batch["labels"], reduction="sum")

    per_text = ("labels", "num_choices")
    return Objective(collate, loss, lambda batch: len(batch["labels"]), per_text=per_text, logits=choice_logits)


def right_continuation(collate: Callable[[list[dict]], Batch]) -> Objective:
    """Language modelling of the right choice behind its prompt."""
    return replace(language_model(collate), row_lengths=right_lengths)


def continuation_choice(collate: Callable[[list[dict]], Batch]) -> Objective:
    """Score every choice as text, for evaluation."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        scores_BC = choice_likelihoods(model, batch)
        return -scores_BC[scores_BC.isfinite()].sum()

    return Objective(
        collate, loss, lambda batch: int((batch["labels"] >= 0).sum()), logits=choice_likelihoods, packable=False,
        row_lengths=continuation_lengths,
    )  # fmt: skip
