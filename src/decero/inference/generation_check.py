"""Does a model write with its cache what it writes without? Eight tokens tell."""

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from decero.errors import root_line
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import remembers_keys
from decero.inference.decode import decode, quiet

TOKENS, PROMPT = 8, 5
# How far the score of a written token may lie below the best one, as a share of the way from the median to the best:
# rounding. A token that was written without memory lies anywhere on that way.
NEAR = 0.01
NEAR_IN_16_BITS = 0.1


def check_generation(model: PreTrainedModel, autocast: bool = False) -> str | None:
    """One line that says where greedy text with the cache differs from that without; None where it does not.

    Write eight tokens with the cache, read them in one pass without it: each must have the best score there, up to
    rounding. The model's mode and settings and the random state stay as they were. A model whose memory is not keys and
    values (XLNet, Mamba) is not checked. autocast: the model computes in 16 bits, whatever its weights are.
    """
    plain = _plain(model) if model.can_generate() and remembers_keys(model) else None
    room = positions_of(model, decoder=True) or TOKENS + PROMPT
    if plain is None or room < 2:
        return None
    prompt = _prompt(model, min(PROMPT, room - 1))
    own, was_training = model.generation_config, model.training
    model.generation_config = plain
    model.eval()
    try:
        (written,) = decode(model, [prompt], max_new_tokens=TOKENS)
        behind = _behind(model, prompt, written)
    except Exception as error:  # each model has its own; the command that follows meets it where it is reported
        return f"generation check: the model does not generate ({type(error).__name__}: {root_line(error)[:200]})"
    finally:
        model.generation_config = own
        model.train(was_training)
    if any(gap != gap for gap in behind):
        return "generation check: the model's scores are NaN, so what it generates is noise"
    near = NEAR if model.dtype in (torch.float32, torch.float64) and not autocast else NEAR_IN_16_BITS
    if wrong := [number for number, gap in enumerate(behind, start=1) if gap > near]:
        return (
            f"generation check: with its cache the model writes another text than without (token {wrong[0]} of "
            f"{len(written)}), so what it generates is wrong; it may not fit transformers {transformers.__version__}"
        )
    return None


def _plain(model: PreTrainedModel) -> GenerationConfig | None:
    """Settings that neither end nor bend a text; None where a decoder is told no token to start from."""
    own: Any = model.generation_config
    start = getattr(own, "decoder_start_token_id", None)
    start = own.bos_token_id if start is None else start
    if model.config.is_encoder_decoder and not isinstance(start, int):
        return None
    pad = own.pad_token_id if isinstance(own.pad_token_id, int) else 0
    return GenerationConfig(pad_token_id=pad, bos_token_id=own.bos_token_id, decoder_start_token_id=start)


def _prompt(model: PreTrainedModel, length: int) -> list[int]:
    """Token ids that are the same each time, none of them special, from a random state of their own."""
    own: Any = model.generation_config
    special = {own.pad_token_id, own.bos_token_id, *torch.tensor(own.eos_token_id or []).flatten().tolist()}
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    drawn = torch.randint(vocabulary, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    return ([token for token in drawn if token not in special] + drawn)[:length]


@torch.no_grad()
def _behind(model: PreTrainedModel, prompt: list[int], written: list[int]) -> list[float]:
    """For each written token how far its score, read without a cache, lies behind the best: 0, to 1 at the median."""
    config: Any = model.generation_config
    if model.config.is_encoder_decoder:
        reads, first = {"input_ids": prompt, "decoder_input_ids": [config.decoder_start_token_id, *written[:-1]]}, 0
    else:
        reads, first = {"input_ids": prompt + written[:-1]}, len(prompt) - 1
    inputs: dict[str, Any] = {name: torch.tensor([ids], device=model.device) for name, ids in reads.items()}
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    with quiet():
        logits_LV: Tensor = model(**inputs).logits[0, first:].float().cpu()
    best_L = logits_LV.max(dim=-1).values
    missing_L = best_L - logits_LV.gather(1, torch.tensor(written)[:, None]).squeeze(1)
    reach_L = best_L - logits_LV.median(dim=-1).values
    return torch.where(missing_L == 0, 0.0, missing_L / reach_L).tolist()
