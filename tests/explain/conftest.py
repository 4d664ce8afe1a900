"""Tiny models of several families, built from their configurations."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

DIMS = {"vocab_size": 113, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
SEQ2SEQ = {
    "vocab_size": 113, "d_model": 33, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
    "decoder_attention_heads": 3, "encoder_ffn_dim": 41, "decoder_ffn_dim": 43, "max_position_embeddings": 64,
}  # fmt: skip
T5 = {
    "vocab_size": 113, "d_model": 33, "d_kv": 14, "d_ff": 41, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 5
}  # fmt: skip
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
GROUPED = DIMS | {"hidden_size": 44, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
RELATIVE = DIMS | {"decoder_layers": 3, "position_embedding_type": "relative"}
FAMILIES = {
    "bert": (AutoModelForMaskedLM, DIMS),
    "mpnet": (AutoModelForMaskedLM, DIMS),  # attention code of its own
    "albert": (AutoModelForMaskedLM, DIMS | {"embedding_size": 17}),  # one layer, called twice
    "llama": (AutoModelForCausalLM, GROUPED),
    "gpt2": (AutoModelForCausalLM, {"vocab_size": 113, "n_embd": 33, "n_layer": 2, "n_head": 3, "n_positions": 64}),
    "gemma2": (AutoModelForCausalLM, GROUPED | {"sliding_window": 5}),
    "t5": (AutoModelForSeq2SeqLM, T5),
    "bart": (AutoModelForSeq2SeqLM, SEQ2SEQ),
    "decero_encoder": (AutoModelForMaskedLM, DIMS | {"hidden_size": 42}),
    "decero_decoder": (AutoModelForCausalLM, GROUPED),
    "decero_encoder_decoder": (AutoModelForSeq2SeqLM, RELATIVE),
}
START = {"t5": 0, "bart": 1, "decero_encoder_decoder": 0}


@pytest.fixture
def tiny():
    """Build a tiny model of a family, with random weights that are large enough to attend unevenly."""

    def build(family, **fields):
        auto, dims = FAMILIES[family]
        start = {"decoder_start_token_id": START[family]} if family in START else {}
        ids = {} if family in ("mpnet", "bart") else IDS
        torch.manual_seed(0)
        model = auto.from_config(CONFIG_MAPPING[family](**(dims | ids | start | fields)))
        for each in model.parameters():
            if each.dim() > 1:
                each.data.normal_(0, 0.3)
        return model.eval()

    return build
