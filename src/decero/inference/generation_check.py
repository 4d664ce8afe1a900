"""Check on eight tokens that a model writes the same text with its cache as without."""

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from decero.errors import UserError, root_line
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import remembers_keys, remembers_states
from decero.inference.decode import decode, quiet

TOKENS, PROMPT = 8, 5
# Allowed gap between the score of a written token and the best score, due to rounding. The unit is the distance from
# the median score to the best. If the cache is lost, the gap can have any size.
NEAR = 0.01
NEAR_IN_16_BITS = 0.1


def check_generation(model: PreTrainedModel, autocast: bool = False) -> str | None:
    """Compare greedy decoding with and without the cache; return a warning or None.

    The model writes eight tokens with the cache, then scores them in one pass without it. There each token must have
    the best score, up to rounding. Mode, settings and random state of the model stay unchanged. Not checked: models
    whose cache holds neither keys and values nor a state of ours (XLNet, Mamba). autocast: the model computes in 16
    bits, even with fp32 weights.
    """
    own, was_training = getattr(model, "generation_config", None), model.training
    try:
        checked = model.can_generate() and (remembers_keys(model) or remembers_states(model))
        plain = _plain(model) if checked else None
        room = positions_of(model, decoder=True) or TOKENS + PROMPT
        if plain is None or room < 2:
            return None
        prompt = _prompt(model, min(PROMPT, room - 1))
        model.generation_config = plain
        model.eval()
        (written,) = decode(model, [prompt], max_new_tokens=TOKENS)
        gaps = _gaps(model, prompt, written)
    except Exception as error:  # models raise anything here; the command that follows reports the error in full
        cause = error.__cause__ or error  # `decode` wraps it
        kind = "" if isinstance(cause, UserError) else f"{type(cause).__name__}: "
        return f"generation check: the model does not generate ({kind}{root_line(error)[:200]})"
    finally:
        if own is not None:
            model.generation_config = own
        model.train(was_training)
    if any(gap != gap for gap in gaps):
        return "generation check: the model's scores are NaN, so its text is noise; check the weights"
    near = NEAR if model.dtype in (torch.float32, torch.float64) and not autocast else NEAR_IN_16_BITS
    if wrong := [number for number, gap in enumerate(gaps, start=1) if gap > near]:
        return (
            f"generation check: the model writes different text with its cache than without (token {wrong[0]} of "
            f"{len(written)}), so its text is wrong; it may not work with transformers {transformers.__version__}"
        )
    return None


def _plain(model: PreTrainedModel) -> GenerationConfig | None:
    """Return generation settings that change no score and have no end token.

    None: the decoder has no start token.
    """
    own: Any = model.generation_config
    start = getattr(own, "decoder_start_token_id", None)
    start = own.bos_token_id if start is None else start
    if model.config.is_encoder_decoder and not isinstance(start, int):
        return None
    pad = own.pad_token_id if isinstance(own.pad_token_id, int) else 0
    return GenerationConfig(pad_token_id=pad, bos_token_id=own.bos_token_id, decoder_start_token_id=start)


def _prompt(model: PreTrainedModel, length: int) -> list[int]:
    """Draw the same ordinary token ids each time; the global random state stays unchanged."""
    own: Any = model.generation_config
    special = {own.pad_token_id, own.bos_token_id, *torch.tensor(own.eos_token_id or []).flatten().tolist()}
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    drawn = torch.randint(vocabulary, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    return ([token for token in drawn if token not in special] + drawn)[:length]


@torch.no_grad()
def _gaps(model: PreTrainedModel, prompt: list[int], written: list[int]) -> list[float]:
    """Return the gap of each written token to the best score, read without a cache.

    0 is the best score, 1 the median.
    """
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
