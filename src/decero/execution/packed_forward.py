"""Run packed rows through any model: a block mask separates texts, and positions restart with each text.

This relies on what transformers' models have in common: they use a given 4-D mask and given `position_ids` unchanged.
`prove` checks for each model that the results are right.
"""

import inspect
from collections.abc import Iterator
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
from decero.models import DeceroEncoderConfig
from decero.models.heads import Pooler

Batch = dict[str, Tensor]
NOT_READ = ("labels", "num_choices", "draws")  # tensors of a batch that a model does not read
LOGITS_AT_ONCE = 1 << 22  # numbers that `prove` compares at a time
NOT_ACCEPTED = (  # what models raise on inputs that they were not written for; XLM asserts
    UserError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError
)  # fmt: skip
ORDER = ("horizons", "ranks")  # say which tokens of a text see each other, where neither all nor the earlier ones do


def block_mask(
    query_text_BL: Tensor, key_text_BM: Tensor, causal: bool, backend: str, dtype: torch.dtype,
    order: tuple[Tensor, Tensor] | None = None,
) -> Tensor | BlockMask:  # fmt: skip
    """Build the mask for packed rows: tokens attend within their text and, if `causal`, only backwards.

    order: horizons (batch, length) and ranks (batch, memory), instead of `causal`: token i sees token j of its text if
    ranks[j] <= horizons[i].
    Shape (batch, 1, length, memory). Padding (text 0) attends to padding, so that no row of the softmax is empty. The
    mask is bool, additive for eager attention, and a `BlockMask` for FlexAttention.
    """
    if "flex" in backend:
        return document_mask(query_text_BL, key_text_BM, causal, order)
    same_BLM = query_text_BL[:, :, None] == key_text_BM[:, None, :]
    if order is not None:
        same_BLM &= order[1][:, None, :] <= order[0][:, :, None]
    elif causal:
        same_BLM = same_BLM.tril()
    mask_B1LM = same_BLM.unsqueeze(1)
    if backend != "eager":
        return mask_B1LM
    return torch.zeros_like(mask_B1LM, dtype=dtype).masked_fill(~mask_B1LM, torch.finfo(dtype).min)


def by_kind_of_layer(mask: Any, config: Any, batch: Batch) -> Any:
    """Return the mask of an encoder, or a dict with one per kind of layer, if distances count.

    They do if layers see only a window (ModernBERT), and if relative positions meet queries: a query token is far from
    its position. A `BlockMask` is returned as it is: FlexAttention is not used for such models.
    """
    kinds = getattr(config, "layer_types", None) or ()
    if isinstance(mask, BlockMask):
        return mask
    if "sliding_attention" not in kinds:
        relative = isinstance(config, DeceroEncoderConfig) and config.position_embedding_type == "relative"
        return dict.fromkeys(kinds, mask) if relative and "ranks" in batch else mask
    position_BL = batch["position_ids"]
    near_BLM = (position_BL[:, :, None] - position_BL[:, None, :]).abs() <= config.sliding_window
    near_B1LM = near_BLM.unsqueeze(1)
    hidden = mask & near_B1LM if mask.dtype == torch.bool else mask.masked_fill(~near_B1LM, torch.finfo(mask.dtype).min)
    return {"full_attention": mask, "sliding_attention": hidden}


def packed_outputs(model: nn.Module, batch: Batch) -> Any:
    """Run `model` on a packed batch without its labels. Raises UserError for flash kernels."""
    bare = unwrap(model)
    config, backend = bare.config, attention_of(bare)
    if "flash" in backend:
        raise UserError(f"packing: {backend} does not support block masks; set model.attn_implementation=sdpa")
    inputs, text_BL = dict(batch), batch["text_ids"]
    for name in (*NOT_READ, *ORDER, "text_ids", "decoder_text_ids", "attention_mask"):
        inputs.pop(name, None)
    if first := first_position(bare):
        inputs["position_ids"] = inputs["position_ids"] + first
    accepted = inspect.signature(bare.forward).parameters
    inputs = {n: t for n, t in inputs.items() if not n.endswith("position_ids") or n in accepted}
    if not config.is_encoder_decoder or "decoder_input_ids" not in accepted:  # such a head reads one text
        causal = bare.can_generate() or bool(getattr(config, "is_decoder", False)) or takes_cache(accepted)
        order = (batch["horizons"], batch["ranks"]) if "ranks" in batch else None
        mask = block_mask(text_BL, text_BL, causal, backend, bare.dtype, order)
        mask = mask if causal else by_kind_of_layer(mask, config, batch)
        cache = {"use_cache": False} if "use_cache" in accepted else {}
        if "num_choices" in batch:
            return one_choice_a_row(model, inputs | {"attention_mask": mask})
        return model(**inputs, attention_mask=mask, **cache)
    # Self-attention of the encoder and cross-attention need different masks, so the encoder is called separately.
    encoder_inputs = {"attention_mask": block_mask(text_BL, text_BL, False, backend, bare.dtype)}
    encoder, position_ids = bare.get_encoder(), inputs.pop("position_ids", batch["position_ids"])
    if "position_ids" in inspect.signature(encoder.forward).parameters:
        encoder_inputs["position_ids"] = position_ids
    written_BL = batch["decoder_text_ids"]
    hidden = encoder(input_ids=inputs.pop("input_ids"), **encoder_inputs).last_hidden_state
    return model(
        **inputs,
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        attention_mask=block_mask(written_BL, text_BL, False, backend, bare.dtype),
        decoder_attention_mask=block_mask(written_BL, written_BL, True, backend, bare.dtype),
        use_cache=False,
    )


@contextmanager
def texts_before_heads(model: nn.Module, batch: Batch):
    """Unpack the output of the last layer inside: one text per row, (texts, longest text, width).

    So a head that pools, or reads the first token, does so for each text.

    Raises UserError for a model whose layers cannot be found.
    """
    bare = unwrap(model)
    depth = bare.config.num_hidden_layers
    stacks = [m for m in bare.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1:
        raise UserError(f"packing: cannot find the {depth} layers of {type(bare).__name__}")
    real_BL = batch["text_ids"] > 0
    text_N, position_N = batch["text_ids"][real_BL] - 1, batch["position_ids"][real_BL]
    shape = int(text_N.max()) + 1, int(position_N.max()) + 1
    text_mask = torch.zeros(shape, dtype=torch.long, device=text_N.device)
    text_mask[text_N, position_N] = 1

    def unpack(layer, inputs, output):
        hidden_BLD = output[0] if isinstance(output, tuple) else output
        unpacked = hidden_BLD.new_zeros(*shape, hidden_BLD.shape[-1])
        unpacked[text_N, position_N] = hidden_BLD[real_BL]
        return (unpacked, *output[1:]) if isinstance(output, tuple) else unpacked

    hooks = [stacks[0][-1].register_forward_hook(unpack)]
    for pooler in bare.base_model.modules():
        if isinstance(pooler, Pooler):  # it may average over a text, so it needs the lengths
            hooks.append(pooler.register_forward_pre_hook(lambda module, inputs: (inputs[0], text_mask)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def read_logits(outputs: Any) -> Tensor:
    """Return the logits of any head; of one that answers questions, start and end logits as the last dimension."""
    if getattr(outputs, "start_logits", None) is None:
        return outputs.logits
    return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)


def packed_logits(model: nn.Module, batch: Batch, per_text: bool = False) -> Tensor:
    """Return logits: (rows, longest row, vocabulary), or (texts, labels) for `per_text`, a head that pools."""
    if not per_text:
        return read_logits(packed_outputs(model, batch))
    with texts_before_heads(model, batch):
        return read_logits(packed_outputs(model, batch))


def logits_of(model: nn.Module, batch: Batch, per_text: bool = False) -> Tensor:
    """Return the logits for a padded or packed batch, without its labels. per_text: the head pools."""
    if "text_ids" in batch:
        return packed_logits(model, batch, per_text)
    return read_logits(padded_outputs(model, batch))


def padded_outputs(model: nn.Module, batch: Batch) -> Any:
    """Run `model` on a padded batch without its labels."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in NOT_READ}
    return one_choice_a_row(model, inputs) if "num_choices" in batch else model(**inputs)


def one_choice_a_row(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """Run a model whose head chooses, on inputs (texts, length); logits are (texts, 1).

    Such a head reads (rows, choices, length), so each text is a row with one choice. It would also flatten a block
    mask. Therefore the base model gets `inputs` as they are, from a hook.
    """
    hook = unwrap(model).base_model.register_forward_pre_hook(
        lambda module, args, kwargs: ((), kwargs | inputs), with_kwargs=True
    )
    try:
        return model(**{name: tensor.unsqueeze(1) for name, tensor in inputs.items() if tensor.dim() == 2})
    finally:
        hook.remove()


def places_in_texts(text_N: Tensor) -> Tensor:
    """Return how many tokens of its own text stand before each token, (tokens,). A text is in one row."""
    order_N, counts = text_N.argsort(stable=True), text_N.bincount()
    places_N = torch.empty_like(text_N)
    places_N[order_N] = torch.arange(len(text_N), device=text_N.device) - (counts.cumsum(0) - counts)[text_N[order_N]]
    return places_N


@torch.no_grad()
def prove(model: nn.Module, padded: Batch, packed: Batch, per_text: bool = False) -> str | None:
    """Check that packed and padded rows give equal outputs, and that texts do not affect each other.

    Returns None, or what differs. Runs in fp32 without dropout. The test for independence is sharp for any weights:
    the tokens of one text are reversed, and the outputs of the other texts must not change beyond rounding.
    """
    bare = unwrap(model)
    side = "decoder_" if "decoder_text_ids" in packed else ""
    text_BL = packed[f"{side}text_ids"]
    real_BL = text_BL > 0
    in_padded = text_BL[real_BL] - 1, places_in_texts(text_BL[real_BL])
    projection: Any = None if per_text else bare.get_output_embeddings()

    def outputs(batch: Batch, tokens: Any) -> tuple[Tensor, bool]:
        """Return (texts, labels) or (tokens, vocabulary); or (tokens, width) and True, before the projection."""
        with projection_input(projection) as read:
            found = logits_of(bare, batch, per_text)
        found = read[-1] if read else found
        if per_text:
            return found, False
        return found[tokens], bool(read)

    was_training, tf32 = bare.training, torch.backends.cuda.matmul.allow_tf32
    bare.eval()
    torch.backends.cuda.matmul.allow_tf32 = False  # TF32 rounds to 5e-4
    try:
        with torch.autocast(next(bare.parameters()).device.type, enabled=False):
            (expected, hidden), (got, _) = outputs(padded, in_padded), outputs(packed, real_BL)
            if got.shape != expected.shape:
                return f"packed outputs have shape {tuple(got.shape)}, padded ones {tuple(expected.shape)}"
            first_text_BL = packed["text_ids"] == 1
            changed_ids = packed["input_ids"].clone()
            changed_ids[first_text_BL] = changed_ids[first_text_BL].flip(0)
            changed, _ = outputs(packed | {"input_ids": changed_ids}, real_BL)
            other = torch.arange(len(got), device=got.device) > 0 if per_text else text_BL[real_BL] != 1
            found = []  # the largest values of a few tokens at a time: all logits of a large vocabulary take gigabytes
            size = max(1, LOGITS_AT_ONCE // len(projection.weight)) if hidden else len(got)
            for parts in zip(*(each.split(size) for each in (expected, got, changed, other)), strict=True):
                one, two, three = (projection(part) for part in parts[:3]) if hidden else parts[:3]
                leak = (three - two).abs()[parts[3]]
                largest = one.abs().max(), (two - one).abs().max(), leak.max() if len(leak) else leak.new_zeros(())
                found.append(torch.stack(largest))
            scale, difference, leaked = torch.stack(found).amax(dim=0).tolist()  # NaN stays NaN
    except NOT_ACCEPTED as error:
        return f"it does not accept packed rows ({' '.join(str(error).split())[:120]})"
    finally:
        bare.train(was_training)
        torch.backends.cuda.matmul.allow_tf32 = tf32
    if leaked > 1e-6 * scale:
        return "texts in the same row affect each other"
    return None if difference <= 1e-4 * scale else f"packed and padded outputs differ by {difference:.1g}"


@contextmanager
def projection_input(projection: nn.Module | None) -> Iterator[list[Tensor]]:
    """Project one position of each row inside; the list takes what the projection reads, (batch, length, width).

    It stays empty without a projection, and for a model that uses its weight without calling it (MobileBERT).
    """
    read: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple) -> tuple:
        read.append(inputs[0])
        return (inputs[0][:, :1],)

    hook = projection.register_forward_pre_hook(keep) if projection is not None else None
    try:
        yield read
    finally:
        if hook is not None:
            hook.remove()
