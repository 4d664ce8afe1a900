"""Decode many sources in batches, with an encoder-decoder or a causal model.

Sources are sorted by length, so a batch has little padding. A finished row leaves its batch, and the batch continues
without it. Neither changes an answer. Dimensions: B batch, L length, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from decero.errors import UserError
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import generate_with, holds_rows
from decero.execution.weight_layout import prepacked_weights
from decero.inference.decoding_loop import decode_rows, end_tokens
from decero.inference.sampling import Sampling

TOKENS_PER_BATCH = 8192


def decode(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    num_beams: int | None = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    length_penalty: float | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[list[int]]:
    """Return the new token ids of each source, with the end token and without padding.

    model: any model that `generate` of transformers supports. Its generation_config applies to everything not set
        here, except sampling: without `sampling`, decoding is greedy or by beams.
    sources: token ids, including the special tokens that the model reads; none may be empty.
    max_new_tokens: one number for all sources, or one per source.
    num_beams, length_penalty: None takes the value of generation_config.
    tokens_per_batch: limit for rows x beams x (longest source + most new tokens); a batch has at least one row.
    progress: called after each batch with its number of sources.

    Raises UserError for an empty source, for a source that leaves no positions for new tokens in a causal model, and
    for sampling with beams or with a model that must be read one source at a time.
    """
    answers: list[list[int]] = [[] for _ in sources]
    with prepacked_weights(model):  # once for all batches
        for indices, batch in decode_batches(
            model, sources, max_new_tokens=max_new_tokens, num_beams=num_beams, tokens_per_batch=tokens_per_batch,
            length_penalty=length_penalty, sampling=sampling,
        ):  # fmt: skip
            for index, answer in zip(indices, batch, strict=True):
                answers[index] = answer
            if progress is not None:
                progress(len(indices))
    return answers


def decode_batches(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    num_beams: int | None = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    length_penalty: float | None = None,
    sampling: Sampling | None = None,
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Decode as `decode` does, but yield (indices into `sources`, answers) batch by batch.

    The batch with the longest sources comes first.
    """
    config = generation_config_of(model, num_beams, length_penalty)
    limits = _limits(model, sources, max_new_tokens)
    beams = config.num_beams or 1
    if beams > 1 and len(set(limits)) > 1 and not isinstance(max_new_tokens, int):
        raise UserError("max_new_tokens: beam search needs one number for all sources")
    batched = holds_rows(model)  # other models (XLNet, Mamba, code from the hub) read one source at a time
    if sampling and (beams > 1 or not batched):
        why = f"cannot sample with {beams} beams" if beams > 1 else f"cannot sample from {model.config.model_type}"
        raise UserError(f"temperature, top_p: {why}; remove them" + " or set one beam" * (beams > 1))
    was_training = model.training
    model.eval()
    try:
        room = None if model.config.is_encoder_decoder else positions_of(model)
        most_tokens = tokens_per_batch // beams if batched else 0
        for indices in batches_by_length([len(s) for s in sources], limits, most_tokens, room):
            with torch.no_grad(), quiet(), prepacked_weights(model):
                batch = [sources[i] for i in indices]
                most = [limits[i] for i in indices]
                answers = _answer(model, batch, most, config, batched and beams == 1, _picker(sampling, indices, most))
            yield indices, answers  # outside the block: the caller may need gradients and log messages
    finally:
        model.train(was_training)


def batches_by_length(
    lengths: Sequence[int], limits: Sequence[int], tokens: int, positions: int | None = None
) -> list[list[int]]:
    """Sort sources by length, longest first, and return batches of their indices.

    limits: most new tokens of each source. tokens: limit for rows x (longest source + longest limit) of a batch.
    positions: number of positions of a causal model, where source and new tokens share them. Padding uses positions
    too. So a row with many new tokens does not join a batch whose longest source leaves too few positions.
    """
    batches: list[list[int]] = []
    width = written = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -limits[i], i)):
        written = max(written, limits[index])
        fits = positions is None or width + written <= positions
        if batches and fits and (len(batches[-1]) + 1) * (width + written) <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            width, written = lengths[index], limits[index]
    return batches


def generation_config_of(
    model: PreTrainedModel, num_beams: int | None = None, length_penalty: float | None = None
) -> GenerationConfig:
    """Copy the generation config, turn sampling off, and apply num_beams and length_penalty."""
    config = copy.deepcopy(model.generation_config) or GenerationConfig()
    config.do_sample = False
    config.temperature = config.top_k = config.top_p = None  # transformers warns about them without sampling
    config.max_length = None
    config.num_return_sequences = 1
    if num_beams is not None:
        config.num_beams = num_beams
    if length_penalty is not None:
        config.length_penalty = length_penalty
    if (config.num_beams or 1) == 1:
        config.length_penalty = config.early_stopping = None  # they have no effect here
    if config.pad_token_id is None:
        eos = config.eos_token_id if config.eos_token_id is not None else 0
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return config


def _limits(model: PreTrainedModel, sources: Sequence[Sequence[int]], most: int | Sequence[int]) -> list[int]:
    """Return the most new tokens per source, limited by the positions of the model."""
    limits = [most] * len(sources) if isinstance(most, int) else list(most)
    if min(limits, default=1) < 1:
        raise UserError("max_new_tokens must be at least 1")
    positions = positions_of(model, decoder=True)  # in a causal model the source uses them too
    for index, (source, limit) in enumerate(zip(sources, limits, strict=True)):
        if not len(source):
            raise UserError(f"source {index + 1} is empty; remove it")
        room = limit
        if positions:
            room = positions - (0 if model.config.is_encoder_decoder else len(source))
        if room < 1:
            raise UserError(
                f"source {index + 1} has {len(source)} tokens, and the model has only {positions} positions for source "
                "and answer together; shorten the source"
            )
        limits[index] = min(limit, room)
    return limits


@contextmanager
def quiet():
    """Silence messages of transformers about generation settings, which are set here."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def _picker(sampling: Sampling | None, indices: Sequence[int], limits: Sequence[int]) -> Callable[..., Tensor]:
    """Return pick(logits_BV, rows_B, step), which gives the next token per row.

    rows_B: numbers of the rows in the original batch.
    """
    if sampling is None:
        return lambda logits_BV, rows_B, step: logits_BV.argmax(dim=-1)
    uniform_BL = sampling.uniform(indices, max(limits))
    return lambda logits_BV, rows_B, step: sampling.pick(logits_BV, uniform_BL.to(rows_B.device)[rows_B, step])


def _answer(
    model: PreTrainedModel, sources: list[Sequence[int]], limits: list[int], config: GenerationConfig, leaves: bool,
    pick: Callable[..., Tensor],
) -> list[list[int]]:  # fmt: skip
    """Decode one batch.

    Sources of a causal model are padded on the left, so that new tokens follow the last token.
    leaves: whether finished rows may leave the batch.
    """
    padded = _padded(sources, config.pad_token_id, left=not model.config.is_encoder_decoder)
    inputs: dict[str, Any] = {name: tensor.to(model.device) for name, tensor in padded.items()}
    inputs |= {"generation_config": config, "max_new_tokens": max(limits)}
    if leaves:
        written: list[list[int]] = [[] for _ in sources]
        generate_with(model, partial(decode_rows, limits=limits, written=written, pick=pick), **inputs)
        return written
    ids_BL = model.generate(**inputs)  # type: ignore[operator]
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = end_tokens(config.eos_token_id)
    return [_until_end(row[start:][:limit], ends) for row, limit in zip(ids_BL.tolist(), limits, strict=True)]


def _padded(sources: list[Sequence[int]], fill: int, left: bool) -> dict[str, Tensor]:
    """Pad the sources: input_ids and attention_mask, both (batch, length)."""
    L = max(map(len, sources))
    ids_BL = torch.full((len(sources), L), fill, dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    for row, source in enumerate(sources):
        span = slice(L - len(source), L) if left else slice(len(source))
        ids_BL[row, span], mask_BL[row, span] = torch.as_tensor(source), 1
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


def _until_end(ids: list[int], ends: list[int]) -> list[int]:
    """Keep the ids up to and including the first end token; the rest is padding."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    return ids
