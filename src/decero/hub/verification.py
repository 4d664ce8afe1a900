"""Check that two models compute the same outputs on one fixed batch with padding, and write the same tokens."""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import has_short_cache
from decero.hub.table import Family

TOLERANCE = 1e-4  # absolute for outputs up to 1, relative above
MOST_PROMPT, MOST_NEW = 8, 16  # tokens of a check of generation
OUTPUTS = (
    "logits", "start_logits", "end_logits", "last_hidden_state", "encoder_last_hidden_state", "pooler_output",
    "reconstruction", "feature_maps", "pred_boxes", "velocity",
)  # fmt: skip


def random_batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Make three texts of random tokens for a decero model, two of them padded on the right.

    An encoder-decoder that reads two sides gets both; one that classifies gets texts with one end token, the last. A
    classifier without a padding token cannot find the end of a text, so it gets one text. A model that chooses gets one
    row of three choices. A model of images gets two images.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        return _images(model, generator)
    pad = config.pad_token_id
    single = pad is None and "Classification" in type(model).__name__
    longest = min(23, positions_of(model) or 23)

    ends = config.is_encoder_decoder and type(model).__name__.endswith("ForSequenceClassification")
    end = config.eos_token_id if ends else None

    def text(prefix: str, longest: int) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([[longest], [max(1, longest - 5)], [max(1, longest // 3)]])[: 1 if single else 3]
        mask = (torch.arange(longest) < lengths).long()
        ids = torch.randint(0, config.vocab_size - 1, mask.shape, generator=generator)
        ids = ids + (ids >= (pad or 0))  # never the padding token
        if isinstance(end, int):
            ids = ids.masked_fill(ids == end, 3 if end != 3 else 4).scatter(1, mask.sum(dim=1, keepdim=True) - 1, end)
        return {f"{prefix}input_ids": ids * mask + (pad or 0) * (1 - mask), f"{prefix}attention_mask": mask}

    batch = text("", longest)
    if config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        batch |= text("decoder_", max(1, longest - 3))
    elif getattr(config, "type_vocab_size", 0) > 1:
        types = torch.randint(0, config.type_vocab_size, batch["input_ids"].shape, generator=generator)
        batch["token_type_ids"] = types
    if type(model).__name__.endswith("ForMultipleChoice"):  # the texts are three choices
        batch = {name: tensor.unsqueeze(0) for name, tensor in batch.items()}
    return batch


def _images(model: PreTrainedModel, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config: Any = model.config
    side = getattr(config, "image_size", None)
    side = (side, side) if isinstance(side, int) else side or (64, 96)  # those who find objects read any size
    size = getattr(config, "picture_size", side)
    batch = {"pixel_values": torch.randn(2, config.num_channels, *size, generator=generator)}
    if type(model).__name__.endswith("ForMaskedImageModeling"):
        height, width = config.grid_size
        batch["bool_masked_pos"] = torch.rand(2, height * width, generator=generator) < 0.5
    if "timestep" in inspect.signature(model.forward).parameters:
        batch |= {"timestep": torch.tensor([0.2, 0.9]), "class_labels": torch.tensor([0, config.num_labels])}
    return batch


@torch.no_grad()
def check_equal(ours: PreTrainedModel, stock: PreTrainedModel, family: Family) -> str:
    """Run both models in fp32 and return a sentence with the largest difference of their outputs, without padding.

    Leaves both in fp32 and in evaluation mode. Tensors given by a formula are computed again, because the stock model
    may store them rounded. Raises UserError when outputs differ by more than `TOLERANCE`.
    """
    batch = random_batch(ours)
    our_outputs = ours.float().eval()(**batch)
    stock.float().eval()
    for name, computed in family.formula(stock).items():
        stock.get_parameter(name).copy_(computed)
    stock_outputs = stock(**batch)
    names = [name for name in OUTPUTS if our_outputs.get(name) is not None and name in stock_outputs]
    apart = scale = 0.0
    for name in names:
        difference, largest = _difference(name, our_outputs[name], stock_outputs[name], batch)
        if not difference <= TOLERANCE * max(1.0, largest):  # so that NaN fails
            raise UserError(
                f"{name} of {type(ours).__name__} and {type(stock).__name__} differ by {difference:.1e} (largest value "
                f"{largest:.1e}); this is a bug in decero, please report it"
            )
        apart, scale = max(apart, difference), max(scale, largest)
    return f"largest difference of {', '.join(names)} in fp32: {apart:.1e} (largest value {scale:.1e})"


def prompts_of(model: PreTrainedModel) -> tuple[list[list[int]], int]:
    """Return three prompts of random tokens, of unequal length, and how many tokens to write after each."""
    batch = random_batch(model)
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
    room = positions_of(model, decoder=True) or MOST_PROMPT + MOST_NEW
    if model.config.is_encoder_decoder:
        return [row[:length] for row, length in rows], max(1, min(MOST_NEW, room - 1))
    longest = max(1, min(MOST_PROMPT, room // 2))
    return [row[: min(length, longest)] for row, length in rows], max(1, min(MOST_NEW, room - longest))


@torch.no_grad()
def greedy_tokens(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    """Return the ids, at most `new`, that `generate` writes after a prompt; the end token is one of them."""
    ids = torch.tensor([prompt])
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": new}
    settings |= {"use_cache": False} if has_short_cache(model) else {}
    written: Any = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # type: ignore[operator]
    return written[0, 1 if model.config.is_encoder_decoder else len(prompt) :].tolist()


@torch.no_grad()
def behind_the_best(model: PreTrainedModel, prompt: list[int], written: list[int]) -> tuple[torch.Tensor, float]:
    """Score written tokens with a model. Returns how far each is behind the best one, and the largest score.

    A greedy text of the same model is never behind, but for rounding: a tie may be broken either way.
    """
    if model.config.is_encoder_decoder:
        start: Any = model.generation_config.decoder_start_token_id  # type: ignore[union-attr]
        before = torch.tensor([[model.config.decoder_start_token_id if start is None else start, *written[:-1]]])
        logits_LV = model(input_ids=torch.tensor([prompt]), decoder_input_ids=before).logits[0]
    else:
        logits_LV = model(input_ids=torch.tensor([prompt + written[:-1]])).logits[0, len(prompt) - 1 :]
    chosen_L = logits_LV.gather(1, torch.tensor(written)[:, None])[:, 0]
    return logits_LV.max(1).values - chosen_L, logits_LV.abs().max().item()


def check_greedy(ours: PreTrainedModel, other: PreTrainedModel) -> str:
    """Write texts with both models and return a sentence with the number of equal tokens.

    Both are in fp32 and in evaluation mode, and use their own generation settings, without sampling and beams. Raises
    UserError when the other model writes a token that ours puts behind another one by more than `TOLERANCE`.
    """
    prompts, new = prompts_of(ours)
    total = 0
    for prompt in prompts:
        wanted, written = greedy_tokens(ours, prompt, new), greedy_tokens(other, prompt, new)
        total += len(written)
        if wanted == written:
            continue
        behind, largest = behind_the_best(ours, prompt, written)
        if not behind.max().item() <= TOLERANCE * max(1.0, largest):
            raise UserError(
                f"{type(other).__name__} writes other tokens than {type(ours).__name__}: {written} after {prompt}, "
                f"where greedy search gives {wanted}; this is a bug in decero, please report it"
            )
    return f"greedy search writes the same {total} tokens after {len(prompts)} prompts"


def largest_difference(outputs: Any, others: Any, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return the largest difference of two models' outputs on a batch, without padding, and the largest value."""
    names = [name for name in OUTPUTS if outputs.get(name) is not None and others.get(name) is not None]
    found = [_difference(name, outputs[name], others[name], batch) for name in names]
    return max(difference for difference, _ in found), max(largest for _, largest in found)


def _difference(name: str, a: torch.Tensor, b: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    of_tokens = "pixel_values" not in batch and (a.dim() == 3 or a.shape == batch["attention_mask"].shape)
    if of_tokens:  # (batch, length, ...)
        output_mask = "decoder_attention_mask" if "decoder_attention_mask" in batch else "attention_mask"
        real = batch["attention_mask" if name == "encoder_last_hidden_state" else output_mask].bool()
        a, b = a[real], b[real]
    return (a - b).abs().max().item(), b.abs().max().item()
