"""Make a tokenizer fit a decoder: a prompt stays open, and a batch of prompts ends where the answers begin."""

from inspect import signature
from typing import Any

from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from decero.data.special_tokens import special_tokens_around
from decero.execution.transformers_internals import fills_holes, heads_of, takes_cache


def ends_with_padding(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer puts the padding token behind each text, as where the end token is also used to pad."""
    return tokenizer.pad_token_id in special_tokens_around(tokenizer)[1]


def fit_decoder(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Make the tokenizer add no end token after a text, and pad on the left. Return whether it added one.

    It still adds the start token. A model does not continue a text that has ended. Rows for training get their end
    token where they are made: `CausalLanguageModeling`, `tokenize_prompts`, the chat template.
    """
    start, end = special_tokens_around(tokenizer)
    if end:
        if getattr(tokenizer, "add_eos_token", False):
            tokenizer.add_eos_token = False  # else transformers adds it again when it loads the saved tokenizer
        first = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.convert_ids_to_tokens(start)]
        single = " ".join([*(token for token, _ in first), "$A"])
        backend: Any = tokenizer.backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(single, f"{single} $B", first)
    tokenizer.padding_side = "left"
    return bool(end)


def is_decoder(config: PreTrainedConfig) -> bool:
    """Tell whether models of a configuration are made to continue texts, as GPT-2 and Llama are."""
    kind = type(config)
    writes = any(takes_cache(signature(head.forward).parameters) for head in heads_of(AutoModelForCausalLM, kind))
    return writes and not config.is_encoder_decoder and not fills_holes(kind)
