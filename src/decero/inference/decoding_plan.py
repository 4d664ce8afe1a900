"""Plan a decoding before it starts: the limit of each answer, the batches, and whether the beams fit.

A batch never changes an answer. Padding and the limits of other rows count for some settings of a generation config, so
with one of these a batch holds only sources of one length or limit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel

from decero.errors import UserError
from decero.execution.positions import positions_of

MAX_NEW_TOKENS = 256  # if neither the caller nor the model sets a limit
MOST_NEW_TOKENS = 10_000_000  # no model writes more
# Setting -> value without effect. They look at the tokens before the answer, or count them, padding included.
COUNTED_IN_PROMPT = {
    "min_length": 0, "no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None,
    "forced_bos_token_id": None, "repetition_penalty": 1.0, "guidance_scale": 1.0,
}  # fmt: skip
COUNTED_IN_SOURCE = {"encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0}


def batches_of(
    model: PreTrainedModel, config: GenerationConfig, lengths: Sequence[int], limits: Sequence[int], tokens: int
) -> list[list[int]]:
    """Return batches of source indices, as `batches_by_length`, in which each answer is as if it were alone."""
    shared = room_is_shared(model)
    by_length = _heeds(config, COUNTED_IN_SOURCE) or (shared and _heeds(config, COUNTED_IN_PROMPT))
    by_limit = (config.num_beams or 1) > 1 or config.forced_eos_token_id is not None  # both depend on the last step
    room = positions_of(model) if shared else None
    return batches_by_length(lengths, limits, tokens, room, equal_lengths=by_length, equal_limits=by_limit)


def _heeds(config: GenerationConfig, settings: Mapping[str, Any]) -> bool:
    """Return whether one of these settings has an effect."""
    return any(getattr(config, name, None) not in (None, neutral) for name, neutral in settings.items())


def batches_by_length(
    lengths: Sequence[int], limits: Sequence[int], tokens: int, positions: int | None = None, *,
    equal_lengths: bool = False, equal_limits: bool = False,
) -> list[list[int]]:  # fmt: skip
    """Sort sources by length, longest first, and return batches of their indices.

    limits: most new tokens of each source. tokens: limit for rows x (longest source + longest limit) of a batch.
    positions: number of positions of a causal model, where source and new tokens share them. Padding uses positions
    too. So a row with many new tokens does not join a batch whose longest source leaves too few positions.
    equal_lengths, equal_limits: put only sources of one length, or of one limit, in a batch.
    """
    batches: list[list[int]] = []
    width = written = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-limits[i] * equal_limits, -lengths[i], -limits[i], i)):
        fits = not ((equal_lengths and lengths[index] != width) or (equal_limits and limits[index] != written))
        written = max(written, limits[index])
        fits = fits and (positions is None or width + written <= positions)
        if batches and fits and (len(batches[-1]) + 1) * (width + written) <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            width, written = lengths[index], limits[index]
    return batches


def limits_of(model: PreTrainedModel, sources: Sequence[Sequence[int]], most: int | Sequence[int] | None) -> list[int]:
    """Return the most new tokens per source, limited by the positions of the model."""
    shared, own = room_is_shared(model), model.generation_config
    if most is None and own.max_new_tokens is None and own.max_length is not None:
        limits = [own.max_length - (len(source) if shared else 1) for source in sources]
        for index, limit in enumerate(limits):
            if limit < 1:
                raise UserError(
                    f"source {index + 1} has {len(sources[index])} tokens, and max_length {own.max_length} of the "
                    "model's generation_config counts them; set --max-new-tokens (generation.max_new_tokens) instead"
                )
    elif isinstance(most, int) or most is None:
        limits = [most if most is not None else own.max_new_tokens or MAX_NEW_TOKENS] * len(sources)
    else:
        limits = list(most)
    if min(limits, default=1) < 1 or max(limits, default=1) > MOST_NEW_TOKENS:
        raise UserError(f"max_new_tokens must be from 1 to {MOST_NEW_TOKENS:,}")
    positions = positions_of(model, decoder=True)  # in a causal model the source uses them too
    for index, (source, limit) in enumerate(zip(sources, limits, strict=True)):
        if not len(source):
            raise UserError(f"source {index + 1} is empty; remove it")
        room = limit
        if positions:
            room = positions - (len(source) if shared else 0)
        if room < 1:
            raise UserError(
                f"source {index + 1} has {len(source)} tokens, and the model has only {positions} positions for source "
                "and answer together; shorten the source"
            )
        limits[index] = min(limit, room)
    return limits


def room_is_shared(model: PreTrainedModel) -> bool:
    """Return whether source and answer are one sequence, as in a causal model."""
    return not model.config.is_encoder_decoder


def check_beams(model: PreTrainedModel, beams: int, source: int, answer: int) -> str | None:
    """Return what is wrong with the number of beams, or None.

    source, answer: tokens of the longest one. Beams are limited by the vocabulary, and by the memory for one source:
    keys and values of all beams, and their scores.
    """
    config: Any = model.config.get_text_config(decoder=True)
    if beams > config.vocab_size:
        return f"{beams} beams exceed the {config.vocab_size} tokens of the vocabulary"
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    bytes_of_beam = 2 * 2 * layers * width * (source + answer) * model.dtype.itemsize + 4 * 4 * config.vocab_size
    cuda = model.device.type == "cuda"
    memory = torch.cuda.mem_get_info(model.device)[1] if cuda else psutil.virtual_memory().available
    if beams > 1 and beams * bytes_of_beam > memory:
        return (
            f"{beams} beams need about {beams * bytes_of_beam / 1e9:,.1f} GB of memory for one text, and "
            f"{memory / 1e9:,.1f} GB are there"
        )
    return None
