"""Write one token per row and step; finished rows leave the batch.

Dimensions: B batch, L length, M memory, D hidden size, V vocabulary, E end tokens.
"""

import inspect

import torch
from torch import Tensor
from transformers.generation import logits_process
from transformers.modeling_outputs import BaseModelOutput

from decero.execution.transformers_internals import CACHE, DynamicLayer, handed_cache, replace_layers

# These processors look only at the tokens of each row, so rows may leave. Others keep state per row index.
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
LEAVE_SHARE = 1 / 8  # share of finished rows before they leave, because leaving copies the cache


def end_tokens(eos: int | list[int] | None) -> list[int]:
    """Return the end tokens as a list, whatever form `eos_token_id` has."""
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


class GrowingLayer(DynamicLayer):
    """Hold keys and values of one layer in buffers that double when full.

    DynamicLayer of transformers copies all of them in each step.
    """

    buffers: list[Tensor]  # keys and values, with room for more positions

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        past = self.get_seq_length()
        now = past + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not past or now > self.buffers[0].shape[2]:
            previous = self.keys, self.values
            self.buffers = [
                new.new_empty(*new.shape[:2], max(64, 2 * now), new.shape[3]) for new in (key_states, value_states)
            ]
            if past:
                self._put(previous, 0, past)
        self._put((key_states, value_states), past, now)
        self.keys, self.values = (buffer[:, :, :now] for buffer in self.buffers)
        return self.keys, self.values

    def _put(self, tensors, start: int, end: int) -> None:
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            buffer[:, :, start:end] = tensor

    def keep(self, length: int) -> None:
        """Forget all but the first `length` positions; the buffers stay."""
        self.keys, self.values = (tensor[:, :, :length] for tensor in (self.keys, self.values) if tensor is not None)

    def batch_select_indices(self, indices: Tensor) -> None:
        if past := self.get_seq_length():
            self.buffers = [buffer[indices] for buffer in self.buffers]
            self.keys, self.values = (buffer[:, :, :past] for buffer in self.buffers)


def decode_rows(
    model, input_ids, logits_processor, stopping_criteria, generation_config, *, limits, written, pick, said=None,
    **state,
):  # fmt: skip
    """Decode a batch token by token. `generate` calls this loop after its own preparation.

    input_ids: (batch, length), the first tokens that the decoder reads. limits: most new tokens per row.
    written: one list per row, filled with its answer. pick: (logits_BV, rows_B, step) -> next token per row.
    said: called with the new token of a single row; the row ends where it returns False.

    The cache may hold the beginning of the rows already, as that of a dialogue does; only the rest is read.
    Returns the tokens, (batch, longest limit), padded.
    """
    encoded = model.config.is_encoder_decoder
    mask_BM, cache = state.get("attention_mask"), handed_cache(state)
    replace_layers(cache, GrowingLayer)
    may_leave = all(type(processor) in ROW_BY_ROW for processor in logits_processor)
    parameters = inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    positions_BL = state.get("position_ids") if not encoded and "position_ids" in parameters else None
    device, B = input_ids.device, len(input_ids)
    ends_E = torch.tensor(end_tokens(generation_config.eos_token_id), device=device)
    limit_B = torch.tensor(limits, device=device)
    rows_B, done_B = torch.arange(B, device=device), torch.zeros(B, dtype=torch.bool, device=device)
    tokens = torch.full((B, max(limits)), generation_config.pad_token_id, device=device)
    count_B = torch.zeros(B, dtype=torch.long, device=device)
    past = 0 if encoded else cache.get_seq_length()
    new_BL, ids_BL, hidden_BMD = input_ids[:, past:], input_ids, state["encoder_outputs"][0] if encoded else None
    positions_BL = None if positions_BL is None else positions_BL[:, past:]
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
        if said is not None and not said(int(next_B[0])):
            break
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
