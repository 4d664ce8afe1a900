"""Packed rows through any model: a block mask keeps texts apart, positions start again with each, heads get texts back.

Works with what transformers' models have in common: a ready-made 4-D mask is used as it is, `position_ids` are taken as
they are. Whether it is right for a model is not believed but measured: `prove`.
"""

import inspect
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_outputs import BaseModelOutput

from decero.errors import UserError
from decero.execution.flex_attention import document_mask
from decero.execution.positions import first_position
from decero.execution.transformers_internals import attention_of, takes_cache
from decero.execution.unwrap import unwrap
from decero.models.modeling_encoder import Pooler

Batch = dict[str, Tensor]


def block_mask(
    query_text_BL: Tensor, key_text_BM: Tensor, causal: bool, backend: str, dtype: torch.dtype
) -> Tensor | BlockMask:
    """(batch, 1, length, memory): tokens of one text see each other, and if `causal` only those before them.

    Padding (text 0) sees padding, so that no row of the softmax is empty. Bool, additive for eager attention, and for
    FlexAttention the blocks that are not all hidden.
    """
    if "flex" in backend:
        return document_mask(query_text_BL, key_text_BM, causal)
    same_BLM = query_text_BL[:, :, None] == key_text_BM[:, None, :]
    if causal:
        same_BLM = same_BLM.tril()
    mask_B1LM = same_BLM.unsqueeze(1)
    if backend != "eager":
        return mask_B1LM
    return torch.zeros_like(mask_B1LM, dtype=dtype).masked_fill(~mask_B1LM, torch.finfo(dtype).min)


def packed_outputs(model: nn.Module, batch: Batch) -> Any:
    """The outputs of `model` for a packed batch; its labels are kept back."""
    bare = unwrap(model)
    config, backend = bare.config, attention_of(bare)
    if "flash" in backend:
        raise UserError(f"packing: {backend} takes no block mask; set model.attn_implementation=sdpa")
    reading, text_BL = dict(batch), batch["text_ids"]
    for name in ("labels", "text_ids", "decoder_text_ids", "attention_mask"):
        reading.pop(name, None)
    if first := first_position(bare):
        reading["position_ids"] = reading["position_ids"] + first
    takes = inspect.signature(bare.forward).parameters
    reading = {n: t for n, t in reading.items() if not n.endswith("position_ids") or n in takes}
    if not config.is_encoder_decoder:
        causal = bare.can_generate() or bool(getattr(config, "is_decoder", False)) or takes_cache(takes)
        mask = block_mask(text_BL, text_BL, causal, backend, bare.dtype)
        cache = {"use_cache": False} if "use_cache" in takes else {}
        return model(**reading, attention_mask=mask, **cache)
    # The mask that the encoder reads with is not the one that the decoder looks back with, so they are called in turn.
    own = {"attention_mask": block_mask(text_BL, text_BL, False, backend, bare.dtype)}
    encoder, position_ids = bare.get_encoder(), reading.pop("position_ids", batch["position_ids"])
    if "position_ids" in inspect.signature(encoder.forward).parameters:
        own["position_ids"] = position_ids
    written_BL = batch["decoder_text_ids"]
    hidden = encoder(input_ids=reading.pop("input_ids"), **own).last_hidden_state
    return model(
        **reading,
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        attention_mask=block_mask(written_BL, text_BL, False, backend, bare.dtype),
        decoder_attention_mask=block_mask(written_BL, written_BL, True, backend, bare.dtype),
        use_cache=False,
    )


@contextmanager
def texts_before_heads(model: nn.Module, batch: Batch):
    """Inside, what leaves the last layer is one text a row again (texts, longest text, model), so that any head which
    pools or reads a first token does so for each text.

    Raises UserError for a model whose layers cannot be told.
    """
    bare = unwrap(model)
    depth = bare.config.num_hidden_layers
    stacks = [m for m in bare.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1:
        raise UserError(f"packing: cannot tell which are the {depth} layers of {type(bare).__name__}")
    real_BL = batch["text_ids"] > 0
    text_N, position_N = batch["text_ids"][real_BL] - 1, batch["position_ids"][real_BL]
    shape = int(text_N.max()) + 1, int(position_N.max()) + 1
    text_mask = torch.zeros(shape, dtype=torch.long, device=text_N.device)
    text_mask[text_N, position_N] = 1

    def unpack(layer, inputs, output):
        hidden_BLD = output[0] if isinstance(output, tuple) else output
        apart = hidden_BLD.new_zeros(*shape, hidden_BLD.shape[-1])
        apart[text_N, position_N] = hidden_BLD[real_BL]
        return (apart, *output[1:]) if isinstance(output, tuple) else apart

    hooks = [stacks[0][-1].register_forward_hook(unpack)]
    pooler = getattr(bare.base_model, "pooler", None)
    if isinstance(pooler, Pooler):  # ours may average over a text, so it has to know how long each is
        hooks.append(pooler.register_forward_pre_hook(lambda module, inputs: (inputs[0], text_mask)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def packed_logits(model: nn.Module, batch: Batch, per_text: bool = False) -> Tensor:
    """(rows, longest row, vocabulary), or with `per_text` what a head that pools says of each text: (texts, labels)."""
    if not per_text:
        return packed_outputs(model, batch).logits
    with texts_before_heads(model, batch):
        return packed_outputs(model, batch).logits


def logits_of(model: nn.Module, batch: Batch, per_text: bool = False) -> Tensor:
    """The model's logits for a batch, padded or packed, its labels kept back. per_text: its head pools."""
    if "text_ids" in batch:
        return packed_logits(model, batch, per_text)
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


@torch.no_grad()
def prove(model: nn.Module, padded: Batch, packed: Batch, per_text: bool = False) -> str | None:
    """Whether packed rows give what the same texts give padded, and no text hears of another: None, or why not.

    Asked in fp32 and without dropout. That other texts are not heard is exact: when one text is read backwards, the
    outputs of the others do not change by a bit's worth, whatever the weights are.
    """
    bare = unwrap(model)
    side = "decoder_" if bare.config.is_encoder_decoder and not per_text else ""
    text_BL, position_BL = packed[f"{side}text_ids"], packed[f"{side}position_ids"]

    def outputs(batch: Batch) -> Tensor:
        """(texts, labels) or (tokens, vocabulary)."""
        logits = packed_logits(bare, batch, per_text)
        return logits if per_text else logits[text_BL > 0]

    was_training, tf32 = bare.training, torch.backends.cuda.matmul.allow_tf32
    bare.eval()
    torch.backends.cuda.matmul.allow_tf32 = False  # it rounds at 5e-4
    try:
        with torch.autocast(next(bare.parameters()).device.type, enabled=False):
            expected = bare(**{n: t for n, t in padded.items() if n != "labels"}).logits
            if not per_text:
                expected = expected[text_BL[text_BL > 0] - 1, position_BL[text_BL > 0]]
            got = outputs(packed)
            if got.shape != expected.shape:
                return f"packed it gives {tuple(got.shape)}, padded {tuple(expected.shape)}"
            one_BL = packed["text_ids"] == 1
            read = packed["input_ids"].clone()
            read[one_BL] = read[one_BL].flip(0)
            heard = (outputs(packed | {"input_ids": read}) - got).abs()
    except (UserError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        return f"it does not take packed rows ({' '.join(str(error).split())[:120]})"
    finally:
        bare.train(was_training)
        torch.backends.cuda.matmul.allow_tf32 = tf32
    scale, off = float(expected.abs().max()), float((got - expected).abs().max())
    others = heard[1:] if per_text else heard[text_BL[text_BL > 0] != 1]
    if len(others) and float(others.max()) > 1e-6 * scale:
        return "texts of one row hear of each other"
    return None if off <= 1e-4 * scale else f"packed and padded outputs differ by {off:.1g}"
