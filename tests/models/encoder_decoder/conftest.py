"""Variants of the encoder-decoder with large weights, and padded pairs."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM

from decero.models import (
    DeceroEncoderDecoderConfig,
    DeceroEncoderDecoderForConditionalGeneration,
    DeceroEncoderDecoderModel,
)

BACKENDS = ["eager", "sdpa"]
AUTO = {AutoModel: DeceroEncoderDecoderModel, AutoModelForSeq2SeqLM: DeceroEncoderDecoderForConditionalGeneration}
BUCKETS = {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 11}
LEAN = {"norm_type": "rmsnorm", "attention_bias": False, "mlp_bias": False}
VARIANTS = {
    "vaswani2017": {
        "position_embedding_type": "sinusoidal", "norm_placement": "post", "scale_embeddings": True,
        "hidden_act": "relu",
    },
    "marian": {
        "position_embedding_type": "sinusoidal_halves", "norm_placement": "post", "lm_head_bias": True,
        "decoder_layers": 1, "decoder_start_token_id": 29,
    },
    "t5": {
        "position_embedding_type": "relative", "scale_attn_weights": False, "scale_lm_head": True, "decoder_layers": 3,
        **LEAN, **BUCKETS,
    },
    "t5_1_1": {
        "position_embedding_type": "relative", "scale_attn_weights": False, "gated_mlp": True,
        "tie_word_embeddings": False, **LEAN, **BUCKETS,
    },
    "bart": {"position_embedding_type": "learned", "norm_placement": "post", "embedding_norm": True},
    "modern": {
        "position_embedding_type": "rotary", "num_key_value_heads": 1, "gated_mlp": True, "hidden_act": "silu",
        "tie_word_embeddings": False, "decoder_layers": 3, **LEAN,
    },
    "blind": {"position_embedding_type": "none", "tie_word_embeddings": False},
}  # fmt: skip
CACHES = {
    "uncached": {"use_cache": False},
    "cached": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
}
FORMS = {
    "sampling": {"do_sample": True, "top_k": 0},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam_sample": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
}
LABELS = torch.tensor([[5, 9, 31, 2, 7], [11, 3, 2, -100, -100], [8, 2, -100, -100, -100]])
HEAD = DeceroEncoderDecoderForConditionalGeneration


@pytest.fixture
def make_model(make_config, randomize):
    """A model of prime sizes with large weights, in eval mode."""

    def make(model_class=HEAD, backend="sdpa", **fields):
        model = randomize(model_class(make_config(DeceroEncoderDecoderConfig, **fields))).eval()
        model.set_attn_implementation(backend)
        return model

    return make


@pytest.fixture
def pairs(batch):
    """Three sources of 7, 5 and 2 tokens, and five tokens of each target."""
    return {**batch, "decoder_input_ids": torch.randint(1, 37, (3, 5))}


def calls_of(model, name):
    """Return a list that grows with each call of the named module in a decoder layer."""
    calls = [0] * len(model.model.decoder.layers)

    def count(i):
        def hook(*_):
            calls[i] += 1

        return hook

    for i, layer in enumerate(model.model.decoder.layers):
        layer.get_submodule(name).register_forward_hook(count(i))
    return calls
