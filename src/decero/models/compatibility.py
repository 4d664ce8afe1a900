"""Hide differences between versions of transformers: cache names and unknown arguments.

transformers 5.24 renamed `past_key_values` to `cache` and will remove the old name in 5.40. Our classes accept both
names, and their outputs have both. This file is part of exported checkpoints, so it must work with every version.
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
# The cache name of the installed transformers: in arguments, outputs, mask builders and `generate`.
CACHE = next(name for name in NAMES if name in {f.name for f in fields(modeling_outputs.CausalLMOutputWithPast)})

# Every stock class accepts these arguments, used or not.
COMMON = frozenset(TransformersKwargs.__optional_keys__) | {
    "cu_seq_lens_k", "cu_seq_lens_q", "debug_io", "is_causal", "max_length_k", "max_length_q", "num_items_in_batch",
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "seq_idx", "use_cache",
}  # fmt: skip
UNREAD = frozenset({"token_type_ids"})  # tokenizers pass it to every model, so only warn

logger = logging.get_logger(__name__)


def takes_either_name(forward):
    """Let a forward pass accept `past_key_values` also as `cache`.

    Raises TypeError if both are given.
    """

    @wraps(forward)
    def renamed(self, *args, **kwargs):
        if "cache" in kwargs:
            cache = kwargs.pop("cache")
            if cache is not None and kwargs.get("past_key_values") is not None:
                raise TypeError(
                    f"{type(self).__name__}: cache and past_key_values are the same argument; give only one"
                )
            if cache is not None:
                kwargs["past_key_values"] = cache
        return forward(self, *args, **kwargs)

    return renamed


def refuses_unknown(forward):
    """Let a forward pass reject unknown arguments and accept the cache by either name.

    Arguments that are None or in COMMON are always accepted. Raises TypeError with the nearest valid name.
    """
    read = set(signature(forward).parameters) - {"self", "kwargs"}
    if "past_key_values" in read:
        forward, read = takes_either_name(forward), read | {"cache"}
    known = frozenset(read) | COMMON

    @wraps(forward)
    def checked(self, *args, **kwargs):
        kwargs |= kwargs.pop("kwargs", {})  # so a stage of transformers' pipeline hands on what it was given
        for name in kwargs:
            if name not in known and kwargs[name] is not None:
                unknown(type(self).__name__, name, known)
        return forward(self, *args, **{name: kwargs[name] for name in kwargs if name in known})

    return checked


def unknown(model, name, known):
    """Raise TypeError for an argument that `model` does not read; warn once if harmless."""
    if name not in UNREAD:
        near = get_close_matches(name, known, n=1)
        raise TypeError(f"{model} does not read {name}" + (f"; did you mean {near[0]}?" if near else ""))
    if not torch.compiler.is_compiling():
        logger.warning_once(f"{model} does not read {name}; remove it")


class IgnoresLabels:
    """Let `generate` take labels, which `Seq2SeqTrainer` hands on; else they would reach the encoder."""

    def generate(self, *args, labels=None, **kwargs):
        return super().generate(*args, **kwargs)


class NoCode(dict):
    """Be the empty `auto_map` of a configuration. An entry becomes an `auto_map` of its own."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def __setitem__(self, name, reference):
        self.config.auto_map = {name: reference}


class EmptyAutoMap:
    """Give a configuration without code an empty `auto_map`, which TRL asks of every one. It is not saved."""

    def __get__(self, config, owner=None):
        return self if config is None else NoCode(config)


class BothNames:
    """Give an output both cache names, `cache` and `past_key_values`; one is the field."""

    if CACHE == "cache":
        past_key_values = property(lambda self: self.cache)
    else:
        cache = property(lambda self: self.past_key_values)


class BaseModelOutputWithPastAndCrossAttentions(BothNames, modeling_outputs.BaseModelOutputWithPastAndCrossAttentions):
    """Hold the output of a decoder."""


class CausalLMOutputWithPast(BothNames, modeling_outputs.CausalLMOutputWithPast):
    """Hold the output of a decoder with a language model head."""


class SequenceClassifierOutputWithPast(BothNames, modeling_outputs.SequenceClassifierOutputWithPast):
    """Hold the output of a decoder with a classification head."""


class Seq2SeqModelOutput(BothNames, modeling_outputs.Seq2SeqModelOutput):
    """Hold the output of an encoder-decoder."""


class Seq2SeqLMOutput(BothNames, modeling_outputs.Seq2SeqLMOutput):
    """Hold the output of an encoder-decoder with a language model head."""


def attention_function(config, default):
    """Return the attention kernel of a model, or `default` for eager attention."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, default)


def self_attention_cache(cache):
    """Return the self-attention part of a cache; for a decoder alone this is all of it."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def known_memory(cache, layer_idx):
    """Return the cached keys and values of the encoder output, or None at the first call."""
    if cache.is_updated.get(layer_idx):
        layer = cache.cross_attention_cache.layers[layer_idx]
        return layer.keys, layer.values
    cache.is_updated[layer_idx] = True
    return None
