"""Decoding: what a model answers to a source (encoder-decoder) or how it goes on (causal), many sources at a time.

Sources are sorted by length, so that a batch holds little padding, and a source that is answered leaves its batch: the
batch goes on with those that are not. Neither changes an answer. Dimensions: B batch, L length, M memory, V vocabulary.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import logits_process
from transformers.modeling_outputs import BaseModelOutput

from decero.errors import UserError
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import (
    CACHE,
    DynamicLayer,
    generate_with,
    handed_cache,
    holds_rows,
    replace_layers,
)
from decero.execution.weight_layout import prepacked_weights
from decero.inference.sampling import Sampling

TOKENS_PER_BATCH = 8192
# These look at one row's tokens alone, so that rows may leave the batch; others know each row by its place.
ROW_BY_ROW = (
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
)
LEAVE_SHARE = 1 / 8  # of a batch that is done before the rest moves together: moving copies what is remembered


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
    """New token ids for each source, in the order given: with the end token where one was written, without padding.

    model: any that transformers generates with. Its generation_config holds for what is not said here, but nothing is
    sampled unless `sampling` says how. sources: token ids with the special tokens that the model reads, none empty.
    max_new_tokens: for all, or for each. num_beams, length_penalty: None is what generation_config says.
    tokens_per_batch: rows x beams x (longest source + what may be written), at most; one row is always read.
    progress: called with the number of sources answered, a batch at a time.

    Raises UserError: an empty source, or one that leaves no room to write within the positions a causal model has;
    sampling with beams, or from a model that is read one source at a time.
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
    """`decode`, a batch at a time as it is done, the longest first: places in `sources`, and what was written there."""
    config = generation_config_of(model, num_beams, length_penalty)
    limits = _limits(model, sources, max_new_tokens)
    beams = config.num_beams or 1
    if beams > 1 and len(set(limits)) > 1 and not isinstance(max_new_tokens, int):
        raise UserError("max_new_tokens: beams take one number for all sources")
    batched = holds_rows(model)  # others (XLNet, Mamba, code from the hub) read one source at a time
    if sampling and (beams > 1 or not batched):
        why = f"{beams} beams are" if beams > 1 else f"{model.config.model_type} is"
        raise UserError(f"temperature, top_p: {why} not sampled; leave them out" + " or set one beam" * (beams > 1))
    was_training = model.training
    model.eval()
    try:
        room = None if model.config.is_encoder_decoder else positions_of(model)
        most_tokens = tokens_per_batch // beams if batched else 0
        for indices in batches_by_length([len(s) for s in sources], limits, most_tokens, room):
            with torch.no_grad(), quiet(), prepacked_weights(model):
                some = [sources[i] for i in indices]
                most = [limits[i] for i in indices]
                answers = _answer(model, some, most, config, batched and beams == 1, _picker(sampling, indices, most))
            yield indices, answers  # outside: who reads them may train, and speak, as they please
    finally:
        model.train(was_training)


def batches_by_length(
    lengths: Sequence[int], limits: Sequence[int], tokens: int, positions: int | None = None
) -> list[list[int]]:
    """Places, longest source first, cut so that rows x (longest source + longest limit) stays within `tokens`.

    positions: of a model that writes behind what it read, in the same positions. Padding takes positions, too, so a
    row that may write much does not go with one that left little room.
    """
    batches: list[list[int]] = []
    width = written = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -limits[i], i)):
        written = max(written, limits[place])
        fits = positions is None or width + written <= positions
        if batches and fits and (len(batches[-1]) + 1) * (width + written) <= tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
            width, written = lengths[place], limits[place]
    return batches


def generation_config_of(
    model: PreTrainedModel, num_beams: int | None = None, length_penalty: float | None = None
) -> GenerationConfig:
    """A copy of the model's own that never samples, with these two where they are given."""
    config = copy.deepcopy(model.generation_config) or GenerationConfig()
    config.do_sample = False
    config.temperature = config.top_k = config.top_p = None  # without sampling they only make transformers complain
    config.max_length = None
    config.num_return_sequences = 1
    if num_beams is not None:
        config.num_beams = num_beams
    if length_penalty is not None:
        config.length_penalty = length_penalty
    if (config.num_beams or 1) == 1:
        config.length_penalty = config.early_stopping = None  # the same
    if config.pad_token_id is None:
        eos = config.eos_token_id if config.eos_token_id is not None else 0
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return config


def _limits(model: PreTrainedModel, sources: Sequence[Sequence[int]], most: int | Sequence[int]) -> list[int]:
    """How many tokens may be written after each source: what was asked for, and no more than there are positions."""
    limits = [most] * len(sources) if isinstance(most, int) else list(most)
    if min(limits, default=1) < 1:
        raise UserError("max_new_tokens: at least 1")
    positions = positions_of(model, decoder=True)  # a causal model has what it reads in them, too
    for place, (source, limit) in enumerate(zip(sources, limits, strict=True)):
        if not len(source):
            raise UserError(f"source {place + 1} is empty: there is nothing to read")
        room = limit
        if positions:
            room = positions - (0 if model.config.is_encoder_decoder else len(source))
        if room < 1:
            raise UserError(
                f"source {place + 1} has {len(source)} tokens, and the model has {positions} positions to read and "
                "write; cut it"
            )
        limits[place] = min(limit, room)
    return limits


@contextmanager
def quiet():
    """transformers tells what it does with settings; those are ours."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def _picker(sampling: Sampling | None, places: Sequence[int], limits: Sequence[int]) -> Callable[..., Tensor]:
    """(logits_BV, rows_B, step) -> the next token of each row, which is row `rows_B` of the batch as it began."""
    if sampling is None:
        return lambda logits_BV, rows_B, step: logits_BV.argmax(dim=-1)
    uniform_BL = sampling.uniform(places, max(limits))
    return lambda logits_BV, rows_B, step: sampling.pick(logits_BV, uniform_BL.to(rows_B.device)[rows_B, step])


def _answer(
    model: PreTrainedModel, sources: list[Sequence[int]], limits: list[int], config: GenerationConfig, leaves: bool,
    pick: Callable[..., Tensor],
) -> list[list[int]]:  # fmt: skip
    """One batch. Sources of a causal model are padded on the left: the next token stands beside the last."""
    read = _padded(sources, config.pad_token_id, left=not model.config.is_encoder_decoder)
    inputs: dict[str, Any] = {name: tensor.to(model.device) for name, tensor in read.items()}
    inputs |= {"generation_config": config, "max_new_tokens": max(limits)}
    if leaves:
        written: list[list[int]] = [[] for _ in sources]
        generate_with(model, partial(_one_by_one, limits=limits, written=written, pick=pick), **inputs)
        return written
    ids_BL = model.generate(**inputs)  # type: ignore[operator]
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = _ends(config.eos_token_id)
    return [_until_end(row[start:][:limit], ends) for row, limit in zip(ids_BL.tolist(), limits, strict=True)]


def _padded(sources: list[Sequence[int]], fill: int, left: bool) -> dict[str, Tensor]:
    """input_ids and attention_mask, (batch, length)."""
    L = max(map(len, sources))
    ids_BL = torch.full((len(sources), L), fill, dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    for row, source in enumerate(sources):
        where = slice(L - len(source), L) if left else slice(len(source))
        ids_BL[row, where], mask_BL[row, where] = torch.as_tensor(source), 1
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


def _ends(eos: int | list[int] | None) -> list[int]:
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _until_end(ids: list[int], ends: list[int]) -> list[int]:
    """Up to the first end token, which is kept; what follows is padding."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in memory that doubles when it is full; transformers copies all of it each step."""

    rooms: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        past = self.get_seq_length()
        now = past + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not past or now > self.rooms[0].shape[2]:
            had = self.keys, self.values
            self.rooms = [
                new.new_empty(*new.shape[:2], max(64, 2 * now), new.shape[3]) for new in (key_states, value_states)
            ]
            if past:
                self._put(had, 0, past)
        self._put((key_states, value_states), past, now)
        self.keys, self.values = (room[:, :, :now] for room in self.rooms)
        return self.keys, self.values

    def _put(self, tensors, start: int, end: int) -> None:
        for room, tensor in zip(self.rooms, tensors, strict=True):
            room[:, :, start:end] = tensor

    def batch_select_indices(self, indices: Tensor) -> None:
        if past := self.get_seq_length():
            self.rooms = [room[indices] for room in self.rooms]
            self.keys, self.values = (room[:, :, :past] for room in self.rooms)


def _one_by_one(
    model, input_ids, logits_processor, stopping_criteria, generation_config, *, limits, written, pick, **state
):  # fmt: skip
    """The loop that `generate` calls when it has prepared all: a token a row each time, done rows leave.

    input_ids: (batch, length), what the decoder reads first. limits: tokens a row. written: what is filled.
    pick: which token, as `_picker` says.
    """
    encoded = model.config.is_encoder_decoder
    mask_BM, cache = state.get("attention_mask"), handed_cache(state)
    replace_layers(cache, GrowingLayer)
    may_leave = all(type(each) in ROW_BY_ROW for each in logits_processor)
    takes = inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    positions_BL = state.get("position_ids") if not encoded and "position_ids" in takes else None
    device, B = input_ids.device, len(input_ids)
    ends_E = torch.tensor(_ends(generation_config.eos_token_id), device=device)
    limit_B = torch.tensor(limits, device=device)
    rows_B, done_B = torch.arange(B, device=device), torch.zeros(B, dtype=torch.bool, device=device)
    tokens = torch.full((B, max(limits)), generation_config.pad_token_id, device=device)
    count_B = torch.zeros(B, dtype=torch.long, device=device)
    new_BL, ids_BL, hidden_BMD = input_ids, input_ids, state["encoder_outputs"][0] if encoded else None
    for step in range(max(limits)):
        if encoded:
            reads = {"decoder_input_ids": new_BL, "encoder_outputs": BaseModelOutput(last_hidden_state=hidden_BMD)}
        else:
            reads = {"input_ids": new_BL} | ({} if positions_BL is None else {"position_ids": positions_BL})
        outputs = model(**reads, attention_mask=mask_BM, use_cache=True, **{CACHE: cache}, **keep)
        logits_BV = outputs.logits[:, -1]
        if logits_processor:
            logits_BV = logits_processor(ids_BL, logits_BV.float())
        next_B = pick(logits_BV, rows_B, step)
        tokens[rows_B[~done_B], step] = next_B[~done_B]
        count_B[rows_B[~done_B]] += 1
        done_B = done_B | torch.isin(next_B, ends_E) | (step + 1 >= limit_B)
        left = int((~done_B).sum())
        if not left:
            break
        new_BL = next_B[:, None]
        ids_BL = torch.cat((ids_BL, new_BL), dim=1)
        if not encoded and mask_BM is not None:
            mask_BM = torch.cat((mask_BM, mask_BM.new_ones(len(mask_BM), 1)), dim=1)
        if positions_BL is not None:
            positions_BL = positions_BL[:, -1:] + 1
        if may_leave and len(done_B) - left >= LEAVE_SHARE * len(done_B):
            stay = (~done_B).nonzero().squeeze(1)
            cache.batch_select_indices(stay)
            rows_B, done_B, limit_B, new_BL, ids_BL = (t[stay] for t in (rows_B, done_B, limit_B, new_BL, ids_BL))
            mask_BM, positions_BL, hidden_BMD = (
                None if t is None else t[stay] for t in (mask_BM, positions_BL, hidden_BMD)
            )
    for answer, row, count in zip(written, tokens.tolist(), count_B.tolist(), strict=True):
        answer[:] = row[:count]
    return tokens
