"""Read off how likely a model finds the tokens that it is asked for."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decero.data.collators import IGNORED
from decero.errors import UserError
from decero.execution.linear_cross_entropy import items_at_once
from decero.execution.objective import Batch, capture_projection_input, only_projects, scored_logits
from decero.execution.packed_forward import logits_of
from decero.execution.unwrap import unwrap


@torch.no_grad()
def token_log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """Return ln p of every scored token, (scored,) fp32, in the order of rows and places.

    Of a discriminator, ln p that the token is original.
    labels of the batch: aligned with the logits that answer for them. A few hundred tokens are projected to the
    vocabulary at a time; the softmax is computed in fp32.
    """
    scored_BL = batch["labels"] != IGNORED
    labels_N = batch["labels"][scored_BL]
    if hasattr(unwrap(model), "discriminator_predictions"):
        return F.logsigmoid(-logits_of(model, batch).float())[scored_BL]
    if not only_projects(model, batch, scored_BL):
        return -F.cross_entropy(scored_logits(model, batch, scored_BL), labels_N, reduction="none")
    with capture_projection_input(model, scored_BL) as captured:
        logits_of(model, batch)
    size, weight, bias = items_at_once(labels_N.device), captured.projection.weight, captured.projection.bias
    nats = [
        F.cross_entropy(F.linear(hidden_ND.to(weight.dtype), weight, bias).float(), part_N, reduction="none")
        for hidden_ND, part_N in zip(captured.hidden.split(size), labels_N.split(size), strict=True)
    ]
    return -torch.cat(nats)


@torch.no_grad()
def check_causal(model: nn.Module, name: str) -> None:
    """Raise UserError for a model whose logits depend on later tokens: BERT as a decoder, XLNet.

    It would read the token that it is asked for. Another last token must leave all logits before it as they are.
    Runs without dropout.
    """
    device, size = next(model.parameters()).device, model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids_BL = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=device) % size
    was_training = model.training
    model.eval()
    before_BLV = logits_of(model, {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)})[:, :-1].float()
    model.train(was_training)
    if (before_BLV[0] - before_BLV[1]).abs().max() > 1e-5 * before_BLV.abs().max():
        raise UserError(
            f"{name}: {type(model).__name__} reads later tokens, so it gives no likelihood; use a causal model, or the "
            "checkpoint's masked head"
        )
