"""Tiny decero and stock models with tokenizer, whose answers differ between texts."""

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    T5Config,
)

from decero.inference import generate, summarize, translate
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig

SIZES = {"vocab_size": 97, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
LABELS = {"id2label": {0: "sport", 1: "trade", 2: "court"}, "label2id": {"sport": 0, "trade": 1, "court": 2}}
T5 = {"vocab_size": 97, "d_model": 33, "d_kv": 14, "d_ff": 41, "num_layers": 2, "num_heads": 3}
CONFIGS = {
    ("seq2seq", "ours"): lambda: DeceroEncoderDecoderConfig(**SIZES, **IDS, head_dim=14, max_position_embeddings=53),
    ("seq2seq", "stock"): lambda: T5Config(**T5, **IDS, decoder_start_token_id=0),
    ("causal", "ours"): lambda: DeceroDecoderConfig(**SIZES, **IDS, head_dim=14, max_position_embeddings=53),
    ("causal", "stock"): lambda: GPT2Config(vocab_size=97, n_embd=33, n_layer=2, n_head=3, n_positions=53, **IDS),
    ("masked", "ours"): lambda: DeceroEncoderConfig(**SIZES, head_dim=14, max_position_embeddings=53),
    ("masked", "stock"): lambda: BertConfig(**SIZES, max_position_embeddings=53),
    ("classifier", "ours"): lambda: DeceroEncoderConfig(**SIZES, **LABELS, head_dim=14, max_position_embeddings=53),
    ("classifier", "stock"): lambda: BertConfig(**SIZES, **LABELS, max_position_embeddings=53),
}
AUTO = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "classifier": AutoModelForSequenceClassification,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """Save a model of a kind (ours or stock) after `change(model)`; return its folder."""
    made = {}

    def build(kind, whose, change=None):
        if (kind, whose, change) not in made:
            folder = tmp_path_factory.mktemp("models") / f"{whose}_{kind}"
            transformers.set_seed(5)
            model = AUTO[kind].from_config(CONFIGS[kind, whose]()).eval()
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if weight.dim() > 1 and "position" not in name:
                        weight.normal_(std=0.3)
            if change is not None:
                change(model)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[kind, whose, change] = str(folder)
        return made[kind, whose, change]

    return build


BOTH = pytest.mark.parametrize("whose", ["ours", "stock"])
WRITERS = {"translate": (translate, "seq2seq"), "summarize": (summarize, "seq2seq"), "generate": (generate, "causal")}
COMMAND_OF = {"seq2seq": "translate", "causal": "generate", "classifier": "classify", "masked": "fill"}
