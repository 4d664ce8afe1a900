"""Do two models compute the same? Their outputs on one fixed batch, with padding."""

import torch
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.execution.positions import positions_of
from decero.hub.table import Family

TOLERANCE = 1e-4  # of outputs up to 1; in proportion above
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "encoder_last_hidden_state", "pooler_output")


def random_batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Three texts of random tokens for a model of ours, two of them padded on the right; both inputs where it has two.

    A classifier without a padding token cannot tell where texts end: it gets one text.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    pad = config.pad_token_id
    alone = pad is None and "Classification" in type(model).__name__
    longest = min(23, positions_of(model) or 23)

    def text(prefix: str, longest: int) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([[longest], [max(1, longest - 5)], [max(1, longest // 3)]])[: 1 if alone else 3]
        mask = (torch.arange(longest) < lengths).long()
        ids = torch.randint(0, config.vocab_size - 1, mask.shape, generator=generator)
        ids = ids + (ids >= (pad or 0))  # anything but padding
        return {f"{prefix}input_ids": ids * mask + (pad or 0) * (1 - mask), f"{prefix}attention_mask": mask}

    batch = text("", longest)
    if config.is_encoder_decoder:
        batch |= text("decoder_", max(1, longest - 3))
    elif config.type_vocab_size > 1:
        types = torch.randint(0, config.type_vocab_size, batch["input_ids"].shape, generator=generator)
        batch["token_type_ids"] = types
    return batch


@torch.no_grad()
def check_equal(ours: PreTrainedModel, stock: PreTrainedModel, family: Family) -> str:
    """Run both in fp32 and say how far their outputs are apart at most, where there is text.

    Both are left in fp32 and in evaluation mode; tables that follow from a formula, which the stock model may hold
    rounded, are computed anew. Raises UserError when outputs differ by more than `TOLERANCE`.
    """
    batch = random_batch(ours)
    mine = ours.float().eval()(**batch)
    stock.float().eval()
    for name, computed in family.formula(stock).items():
        stock.get_parameter(name).copy_(computed)
    theirs = stock(**batch)
    apart, scale, names = 0.0, 0.0, [name for name in OUTPUTS if mine.get(name) is not None and name in theirs]
    for name in names:
        a, b = mine[name], theirs[name]
        if a.dim() == 3 or name in ("start_logits", "end_logits"):  # (batch, length, ...)
            beside = "decoder_attention_mask" if "decoder_attention_mask" in batch else "attention_mask"
            text = batch["attention_mask" if name == "encoder_last_hidden_state" else beside].bool()
            a, b = a[text], b[text]
        difference, largest = (a - b).abs().max().item(), b.abs().max().item()
        if not difference <= TOLERANCE * max(1.0, largest):  # so that NaN fails
            raise UserError(
                f"{name} of {type(ours).__name__} and {type(stock).__name__} differ by {difference:.1e} where the "
                f"largest is {largest:.1e}; this is a defect of decero, please report it"
            )
        apart, scale = max(apart, difference), max(scale, largest)
    return f"largest difference of {', '.join(names)} in fp32: {apart:.1e} (largest value {scale:.1e})"
