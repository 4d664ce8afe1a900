"""Decode many sources in batches, with an encoder-decoder or a causal model.

Sources are sorted by length, so a batch has little padding. A finished row leaves its batch, and the batch continues
without it. Neither changes an answer. Dimensions: B batch, L length, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from decero.errors import UserError, root_line
from decero.execution.transformers_internals import generate_with, has_short_cache, holds_rows
from decero.execution.weight_layout import prepacked_weights
from decero.inference.decoding_loop import decode_rows, end_tokens
from decero.inference.decoding_plan import batches_of, check_beams, limits_of
from decero.inference.sampling import Sampling

TOKENS_PER_BATCH = 8192


def decode(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] | None,
    num_beams: int | None = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    length_penalty: float | None = None,
    settings: Mapping[str, Any] | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[list[int]]:
    """Return the new token ids of each source, with the end token and without padding.

    model: any model that `generate` of transformers supports. Its generation_config applies to everything not set
        here, except sampling: without `sampling`, decoding is greedy or by beams.
    sources: token ids, including the special tokens that the model reads; none may be empty.
    max_new_tokens: one number for all sources, or one per source. None takes the limit of generation_config, where
        max_length counts the start token of a decoder, or the source of a causal model; else MAX_NEW_TOKENS.
    num_beams, length_penalty: None takes the value of generation_config.
    settings: other fields of generation_config to change, such as forced_bos_token_id.
    tokens_per_batch: limit for rows x beams x (longest source + most new tokens); a batch has at least one row.
    progress: called after each batch with its number of sources.

    Raises UserError for an empty source, for a source that leaves no positions for new tokens in a causal model, for
    more beams than fit, for sampling with beams or with a model that must be read one source at a time, and if the
    model or a setting of its generation_config fails.
    """
    answers: list[list[int]] = [[] for _ in sources]
    with prepacked_weights(model):  # once for all batches
        for indices, batch in decode_batches(
            model, sources, max_new_tokens=max_new_tokens, num_beams=num_beams, tokens_per_batch=tokens_per_batch,
            length_penalty=length_penalty, settings=settings, sampling=sampling,
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
    max_new_tokens: int | Sequence[int] | None,
    num_beams: int | None = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    length_penalty: float | None = None,
    settings: Mapping[str, Any] | None = None,
    sampling: Sampling | None = None,
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Decode as `decode` does, but yield (indices into `sources`, answers) batch by batch.

    The batch with the longest sources comes first.
    """
    config = generation_config_of(model, num_beams, length_penalty, settings)
    limits = limits_of(model, sources, max_new_tokens)
    beams = config.num_beams or 1
    batched = holds_rows(model)  # other models (XLNet, Mamba, code from the hub) read one source at a time
    if sampling and (beams > 1 or not batched):
        why = f"cannot sample with {beams} beams" if beams > 1 else f"cannot sample from {model.config.model_type}"
        raise UserError(f"temperature, top_p: {why}; remove them" + " or set one beam" * (beams > 1))
    if problem := check_beams(model, beams, max(map(len, sources), default=0), max(limits, default=0)):
        raise UserError(f"{problem}; use fewer beams")
    was_training = model.training
    model.eval()
    try:
        most_tokens = tokens_per_batch // beams if batched else 0
        for indices in batches_of(model, config, [len(s) for s in sources], limits, most_tokens):
            batch = [sources[i] for i in indices]
            most = [limits[i] for i in indices]
            try:
                with torch.no_grad(), quiet(), prepacked_weights(model):
                    leaves = batched and beams == 1
                    answers = _answer(model, batch, most, config, leaves, picker(sampling, indices, most))
            except UserError:
                raise
            except Exception as error:  # models and settings of a checkpoint raise anything here
                reason = f"{type(error).__name__}: {root_line(error)[:300]}"
                raise UserError(
                    f"the model cannot generate ({reason}); check its generation_config, or use fewer beams or tokens"
                ) from error
            yield indices, answers  # outside the block: the caller may need gradients and log messages
    finally:
        model.train(was_training)


# Settings of generation_config.json that could change the text, and that the loop without beams does not read
UNREAD = ("constraints", "dola_layers", "force_words_ids", "max_time", "penalty_alpha", "stop_strings")


def generation_config_of(
    model: PreTrainedModel, num_beams: int | None = None, length_penalty: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> GenerationConfig:  # fmt: skip
    """Copy the generation config, turn sampling off, and apply num_beams, length_penalty and other settings."""
    config = copy.deepcopy(model.generation_config) or GenerationConfig()
    config.do_sample = False
    config.temperature = config.top_k = config.top_p = None  # transformers warns about them without sampling
    config.max_length = None
    config.num_return_sequences = 1
    # None of these changes an answer, but the loop needs a cache that grows, and a tensor of ids
    config.use_cache, config.cache_implementation, config.return_dict_in_generate = True, "dynamic", False
    if num_beams is not None:
        config.num_beams = num_beams
    if length_penalty is not None:
        config.length_penalty = length_penalty
    for name, value in (settings or {}).items():
        setattr(config, name, value)
    if (config.num_beams or 1) == 1:
        config.length_penalty = config.early_stopping = None  # they have no effect here
    if config.pad_token_id is None:
        config.pad_token_id = next(iter(end_tokens(config.eos_token_id)), 0)
    if not 0 <= config.pad_token_id < model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        config.pad_token_id = 0  # padding is masked, so any token will do
    return config


@contextmanager
def quiet():
    """Silence messages of transformers about generation settings, which are set here."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def picker(sampling: Sampling | None, indices: Sequence[int], limits: Sequence[int]) -> Callable[..., Tensor]:
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
    if has_short_cache(model):
        inputs["use_cache"] = False
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
