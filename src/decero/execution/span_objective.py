"""The loss of extractive question answering: where an answer starts and where it ends, in each window.

Source: Devlin et al. 2019, section 4.2. The loss of a window is the sum of the two cross-entropies; transformers' own
loss is half of it, averaged over a batch, and leaves out answers beyond the window.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from decero.data.answer_windows import BOTH, END, START, NoAnswerToken, pair_layout
from decero.data.collators import IGNORED
from decero.execution.objective import Batch, Objective
from decero.execution.packed_forward import logits_of
from decero.execution.transformers_internals import fills_holes, heads_of
from decero.execution.unwrap import unwrap


def spans(collate: Callable[[list[dict]], Batch]) -> Objective:
    """Sum the loss over windows, packed or padded. The number of windows divides it. collate: an `AnswerCollator`."""
    return Objective(collate, span_loss, lambda batch: int(_marked(batch["labels"], START).sum()))


def span_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the summed loss of all windows."""
    return window_nats(*window_logits(model, batch)).sum()


def window_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return start and end logits, (windows, longest window, 2) with -inf at padding, and labels, (windows, longest).

    Windows have the order of the rows that were collated, also where they are packed.
    """
    logits_BL2, labels_BL = logits_of(model, batch).float(), batch["labels"]
    if "text_ids" not in batch:
        return logits_BL2.masked_fill((labels_BL == IGNORED)[..., None], -torch.inf), labels_BL
    real_BL = batch["text_ids"] > 0
    window_N, place_N = batch["text_ids"][real_BL] - 1, batch["position_ids"][real_BL]
    shape = int(window_N.max()) + 1, int(place_N.max()) + 1
    logits_WL2 = logits_BL2.new_full((*shape, 2), -torch.inf).index_put((window_N, place_N), logits_BL2[real_BL])
    labels_WL = labels_BL.new_full(shape, IGNORED).index_put((window_N, place_N), labels_BL[real_BL])
    return logits_WL2, labels_WL


def window_nats(logits_WL2: Tensor, labels_WL: Tensor) -> Tensor:
    """Return the loss of each window, (windows,). The softmax runs over the tokens of a window, without padding."""
    ends = torch.stack([_marked(labels_WL, START), _marked(labels_WL, END)], dim=-1)
    picked_W2 = logits_WL2.masked_fill(~ends, 0).sum(dim=1)  # one token each
    return (logits_WL2.logsumexp(dim=1) - picked_W2).sum(dim=1)


def _marked(labels: Tensor, what: int) -> Tensor:
    return (labels == what) | (labels == BOTH)


def no_answer_token(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> NoAnswerToken:
    """Return which token of a window stands for "no answer here".

    first: the token that BERT and RoBERTa put first (CLS). last: the end of a window, for decoders, whose first token
    has read nothing, and for tokenizers that begin without CLS (T5) or put it last (XLNet).
    """
    config = unwrap(model).config
    causal = bool(heads_of(AutoModelForCausalLM, type(config))) and not fills_holes(type(config))
    if causal and not config.is_encoder_decoder:
        return "last"
    begins_with_cls = tokenizer.cls_token_id is not None and pair_layout(tokenizer).before[:1] == [
        tokenizer.cls_token_id
    ]
    return "first" if begins_with_cls else "last"
