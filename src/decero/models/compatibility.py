"""Where versions of transformers differ: the name of the cache, and what a forward pass does with unknown arguments.

transformers 5.24 calls `cache` what was `past_key_values` until 5.23, and will forget the old name in 5.40. Our classes
take both names, and their outputs have both. This file travels with an exported checkpoint: it serves every version.
"""

from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from inspect import signature

import torch
from transformers import EncoderDecoderCache, modeling_outputs
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import TransformersKwargs, logging

NAMES = ("cache", "past_key_values")
# The name that the installed transformers gives it: as an argument, in outputs, when it makes masks and generates.
CACHE = next(name for name in NAMES if name in {f.name for f in fields(modeling_outputs.CausalLMOutputWithPast)})

# Every stock class takes these, whether it has a use for them or not.
COMMON = frozenset(TransformersKwargs.__optional_keys__) | {
    "cu_seq_lens_k", "cu_seq_lens_q", "debug_io", "is_causal", "max_length_k", "max_length_q", "num_items_in_batch",
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "seq_idx", "use_cache",
}  # fmt: skip
UNREAD = frozenset({"token_type_ids"})  # tokenizers give it to every model: a warning where nothing reads it

logger = logging.get_logger(__name__)


def takes_either_name(forward):
    """Let a forward pass with `past_key_values` take it as `cache`, too. Raises TypeError when both are given."""

    @wraps(forward)
    def renamed(self, *args, **kwargs):
        if "cache" in kwargs:
            cache = kwargs.pop("cache")
            if cache is not None and kwargs.get("past_key_values") is not None:
                raise TypeError(f"{type(self).__name__}: cache and past_key_values are one argument; give one of them")
            if cache is not None:
                kwargs["past_key_values"] = cache
        return forward(self, *args, **kwargs)

    return renamed


def refuses_unknown(forward):
    """Let a forward pass refuse an argument that nothing reads, and take the cache by either name.

    Raises TypeError with the nearest valid name. None is nothing to read, and what every stock class takes is taken.
    """
    read = set(signature(forward).parameters) - {"self", "kwargs"}
    if "past_key_values" in read:
        forward, read = takes_either_name(forward), read | {"cache"}
    known = frozenset(read) | COMMON

    @wraps(forward)
    def checked(self, *args, **kwargs):
        for name in kwargs:
            if name not in known and kwargs[name] is not None:
                unknown(type(self).__name__, name, known)
        return forward(self, *args, **{name: kwargs[name] for name in kwargs if name in known})

    return checked


def unknown(model, name, known):
    """Raise TypeError for an argument that `model` does not read, or warn once where that does no harm."""
    if name not in UNREAD:
        near = get_close_matches(name, known, n=1)
        raise TypeError(f"{model} does not read {name}" + (f"; did you mean {near[0]}?" if near else ""))
    if not torch.compiler.is_compiling():
        logger.warning_once(f"{model} does not read {name}; leave it out")


class BothNames:
    """An output whose cache is read as `cache` and as `past_key_values`, whichever of them is the field."""

    if CACHE == "cache":
        past_key_values = property(lambda self: self.cache)
    else:
        cache = property(lambda self: self.past_key_values)


class BaseModelOutputWithPastAndCrossAttentions(BothNames, modeling_outputs.BaseModelOutputWithPastAndCrossAttentions):
    """What a decoder gives."""


class CausalLMOutputWithPast(BothNames, modeling_outputs.CausalLMOutputWithPast):
    """What a decoder that predicts tokens gives."""


class SequenceClassifierOutputWithPast(BothNames, modeling_outputs.SequenceClassifierOutputWithPast):
    """What a decoder that classifies gives."""


class Seq2SeqModelOutput(BothNames, modeling_outputs.Seq2SeqModelOutput):
    """What an encoder-decoder gives."""


class Seq2SeqLMOutput(BothNames, modeling_outputs.Seq2SeqLMOutput):
    """What an encoder-decoder that predicts tokens gives."""


def attention_function(config, default):
    """The attention kernel that a model was given, or `default` for eager attention."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, default)


def self_attention_cache(cache):
    """The half of a cache that remembers what was written; the whole of it where there is no encoder."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def known_memory(cache, layer_idx):
    """Keys and values of the encoder's output that a cache holds for a layer, or None at the first call."""
    if cache.is_updated.get(layer_idx):
        layer = cache.cross_attention_cache.layers[layer_idx]
        return layer.keys, layer.values
    cache.is_updated[layer_idx] = True
    return None
