"""The objective of models that label words: cross-entropy of the scored tokens, one a word."""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from decero.data.collators import IGNORED
from decero.execution.objective import Batch, Objective
from decero.execution.packed_forward import logits_of
from decero.execution.unwrap import unwrap


class WordCollator:
    """Pad windows of words to the longest of the batch, on the tokenizer's padding side.

    left_out: model inputs of the tokenizer that the model does not take.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, left_out: tuple[str, ...] = ()):
        self.tokenizer, self.left_out = tokenizer, left_out

    def __call__(self, rows: list[dict]) -> Batch:
        """Return the model inputs and, where rows have them, `labels`: (batch, length), -100 where none is scored."""
        names = [name for name in ("input_ids", "token_type_ids") if name in rows[0] and name not in self.left_out]
        inputs = [{name: row[name] for name in names} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, return_attention_mask=True, return_tensors="pt"))
        if "labels" in rows[0]:
            labels_BL = torch.full_like(batch["input_ids"], IGNORED)
            labels_BL[batch["attention_mask"].bool()] = torch.cat([torch.as_tensor(row["labels"]) for row in rows])
            batch["labels"] = labels_BL
        return batch


def word_collator(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> WordCollator:
    """Return the collator for a model; one without segments gets no segment ids."""
    bare = unwrap(model)
    segments = getattr(bare.config, "type_vocab_size", 2) >= 2
    segments &= "token_type_ids" in inspect.signature(bare.forward).parameters
    return WordCollator(tokenizer, () if segments else ("token_type_ids",))


def token_classification(collate: Callable[[list[dict]], Batch], label_smoothing: float = 0.0) -> Objective:
    """Sum the cross-entropy over the scored tokens. Rows can be packed, because each token is labelled alone."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        scored_BL = batch["labels"] != IGNORED
        logits_NC = logits_of(model, batch)[scored_BL].float()
        return F.cross_entropy(logits_NC, batch["labels"][scored_BL], reduction="sum", label_smoothing=label_smoothing)

    return Objective(collate, loss, lambda batch: int((batch["labels"] != IGNORED).sum()))
