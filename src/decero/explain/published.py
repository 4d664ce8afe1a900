"""Hold the published configurations of well-known models, each with its source, and say what is not published.

Sizes are those of the model's config.json on the hub; a field that is not here does not change a shape. Models of
which only a paper speaks have the sizes that the paper gives.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A model with a published configuration.

    name: on the hub. model_type, fields: of its configuration. architecture: the class of its checkpoint.
    source: paper that presents the model.
    """

    name: str
    model_type: str
    architecture: str
    fields: Fields
    source: str


@dataclass(frozen=True)
class PaperOnly:
    """A model without published weights. dimensions: named as in configurations; parameters: as the paper writes it."""

    name: str
    dimensions: Fields
    parameters: str
    source: str


@dataclass(frozen=True)
class NotPublished:
    """A model whose sizes its maker has not published. source: where that can be read."""

    name: str
    source: str


def published(name: str) -> Published | PaperOnly | NotPublished | None:
    """Find a model by its name on the hub, with or without the owner, or by a usual short name; None if unknown.

    Upper and lower case are the same.
    """
    wanted = name.lower()
    wanted = SHORT.get(wanted, wanted)
    for model in KNOWN:
        if wanted in (model.name.lower(), model.name.lower().rpartition("/")[2]):
            return model
    for pattern, source in CLOSED:
        if re.fullmatch(rf"((openai|anthropic|google)/)?({pattern})", wanted):
            return NotPublished(name, source)
    return None


def nearest(name: str) -> str:
    """Return `"; did you mean gpt2?"` for the nearest known name, or "" when none is near."""
    names = [model.name for model in KNOWN]
    known = {each.lower(): each for each in (*SHORT, "gpt-4", *(name.rpartition("/")[2] for name in names), *names)}
    near = get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _bert(d: int, n: int, h: int, v: int, **more: Any) -> Fields:
    sizes = {"hidden_size": d, "num_hidden_layers": n, "num_attention_heads": h, "intermediate_size": 4 * d}
    return sizes | {"vocab_size": v, "max_position_embeddings": 512} | more


def _roberta(d: int, n: int, h: int, v: int) -> Fields:
    return _bert(d, n, h, v, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1)


def _gpt2(d: int, n: int, h: int) -> Fields:
    return {"n_embd": d, "n_layer": n, "n_head": h, "n_positions": 1024, "vocab_size": 50257}


def _llama(d: int, n: int, h: int, kv: int, f: int, v: int, positions: int, tied: bool = False, **more: Any) -> Fields:
    sizes: Fields = {"hidden_size": d, "num_hidden_layers": n, "num_attention_heads": h, "num_key_value_heads": kv}
    sizes |= {"intermediate_size": f, "vocab_size": v, "max_position_embeddings": positions, "pad_token_id": None}
    return sizes | {"tie_word_embeddings": tied} | more


def _t5(d: int, n: int, h: int, f: int, v: int = 32128, **more: Any) -> Fields:
    sizes = {"d_model": d, "num_layers": n, "num_decoder_layers": n, "num_heads": h, "d_kv": 64, "d_ff": f}
    return sizes | {"vocab_size": v, "feed_forward_proj": "relu", "tie_word_embeddings": True} | more


def _bart(d: int, n: int, h: int, v: int, positions: int) -> Fields:
    stacks = [(f"{s}_layers", n) for s in ("encoder", "decoder")] + [(f"{s}_attention_heads", h) for s in STACKS]
    sizes = {"d_model": d, "vocab_size": v, "max_position_embeddings": positions, **dict(stacks)}
    return sizes | {f"{stack}_ffn_dim": 4 * d for stack in STACKS}


def _vit(d: int, n: int, h: int) -> Fields:
    sizes = {"hidden_size": d, "num_hidden_layers": n, "num_attention_heads": h, "intermediate_size": 4 * d}
    return sizes | {"image_size": 224, "patch_size": 16, "num_channels": 3}


STACKS = ("encoder", "decoder")
GATED: Fields = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MOE: Fields = {"num_local_experts": 8, "num_experts_per_tok": 2}

# (model type, class of the checkpoint, paper) -> name on the hub -> fields of the configuration
TABLE: dict[tuple[str, str, str], dict[str, Fields]] = {
    ("bert", "BertForMaskedLM", "arXiv:1810.04805"): {
        "google-bert/bert-base-uncased": _bert(768, 12, 12, 30522, type_vocab_size=2),
        "google-bert/bert-large-uncased": _bert(1024, 24, 16, 30522, type_vocab_size=2),
        "google-bert/bert-base-cased": _bert(768, 12, 12, 28996, type_vocab_size=2),
        "google-bert/bert-base-multilingual-cased": _bert(768, 12, 12, 119547, type_vocab_size=2),
    },
    ("bert", "BertModel", "arXiv:1908.10084, 2002.10957"): {
        "sentence-transformers/all-MiniLM-L6-v2": _bert(384, 6, 12, 30522, type_vocab_size=2),
    },
    ("roberta", "RobertaForMaskedLM", "arXiv:1907.11692"): {
        "FacebookAI/roberta-base": _roberta(768, 12, 12, 50265),
        "FacebookAI/roberta-large": _roberta(1024, 24, 16, 50265),
    },
    ("xlm-roberta", "XLMRobertaForMaskedLM", "arXiv:1911.02116"): {
        "FacebookAI/xlm-roberta-base": _roberta(768, 12, 12, 250002),
        "FacebookAI/xlm-roberta-large": _roberta(1024, 24, 16, 250002),
    },
    ("distilbert", "DistilBertForMaskedLM", "arXiv:1910.01108"): {
        "distilbert/distilbert-base-uncased": {
            "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "vocab_size": 30522,
            "max_position_embeddings": 512,
        },
    },
    ("albert", "AlbertForMaskedLM", "arXiv:1909.11942"): {
        "albert/albert-base-v2": _bert(768, 12, 12, 30000, embedding_size=128, type_vocab_size=2),
    },
    ("electra", "ElectraForPreTraining", "arXiv:2003.10555"): {
        "google/electra-small-discriminator": _bert(256, 12, 4, 30522, embedding_size=128, type_vocab_size=2),
        "google/electra-base-discriminator": _bert(768, 12, 12, 30522, embedding_size=768, type_vocab_size=2),
    },
    ("deberta-v2", "DebertaV2Model", "arXiv:2111.09543"): {
        "microsoft/deberta-v3-base": _bert(
            768, 12, 12, 128100, type_vocab_size=0, relative_attention=True, position_buckets=256,
            pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False,
        ),
    },
    ("modernbert", "ModernBertForMaskedLM", "arXiv:2412.13663"): {
        "answerdotai/ModernBERT-base": _bert(
            768, 22, 12, 50368, intermediate_size=1152, max_position_embeddings=8192
        ),
        "answerdotai/ModernBERT-large": _bert(
            1024, 28, 16, 50368, intermediate_size=2624, max_position_embeddings=8192
        ),
    },
    ("xlnet", "XLNetLMHeadModel", "arXiv:1906.08237"): {
        "xlnet/xlnet-base-cased": {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072, "vocab_size": 32000},
        "xlnet/xlnet-large-cased": {"d_model": 1024, "n_layer": 24, "n_head": 16, "d_inner": 4096, "vocab_size": 32000},
    },
    ("openai-gpt", "OpenAIGPTLMHeadModel", "Radford et al. 2018"): {
        "openai-community/openai-gpt": {
            "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 512, "vocab_size": 40478,
        },
    },
    ("gpt2", "GPT2LMHeadModel", "Radford et al. 2019"): {
        "openai-community/gpt2": _gpt2(768, 12, 12),
        "openai-community/gpt2-medium": _gpt2(1024, 24, 16),
        "openai-community/gpt2-large": _gpt2(1280, 36, 20),
        "openai-community/gpt2-xl": _gpt2(1600, 48, 25),
    },
    ("gpt2", "GPT2LMHeadModel", "arXiv:1910.01108"): {"distilbert/distilgpt2": _gpt2(768, 6, 12)},
    ("gptj", "GPTJForCausalLM", "Wang and Komatsuzaki 2021"): {
        "EleutherAI/gpt-j-6b": {
            "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048, "vocab_size": 50400, "rotary_dim": 64,
            "tie_word_embeddings": False,
        },
    },
    ("opt", "OPTForCausalLM", "arXiv:2205.01068"): {
        "facebook/opt-125m": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
            "vocab_size": 50272, "word_embed_proj_dim": 768, "max_position_embeddings": 2048,
        },
    },
    ("bloom", "BloomForCausalLM", "arXiv:2211.05100"): {
        "bigscience/bloom-560m": {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880},
        "bigscience/bloom": {"hidden_size": 14336, "n_layer": 70, "n_head": 112, "vocab_size": 250880},
    },
    ("falcon", "FalconForCausalLM", "arXiv:2311.16867"): {
        "tiiuae/falcon-7b": {
            "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024,
            "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False,
        },
    },
    ("llama", "LlamaForCausalLM", "arXiv:2302.13971"): {
        "huggyllama/llama-7b": _llama(4096, 32, 32, 32, 11008, 32000, 2048),
        "huggyllama/llama-65b": _llama(8192, 80, 64, 64, 22016, 32000, 2048),
    },
    ("llama", "LlamaForCausalLM", "arXiv:2307.09288"): {
        "meta-llama/Llama-2-7b-hf": _llama(4096, 32, 32, 32, 11008, 32000, 4096),
        "meta-llama/Llama-2-13b-hf": _llama(5120, 40, 40, 40, 13824, 32000, 4096),
        "meta-llama/Llama-2-70b-hf": _llama(8192, 80, 64, 8, 28672, 32000, 4096),
    },
    ("llama", "LlamaForCausalLM", "arXiv:2407.21783"): {
        "meta-llama/Meta-Llama-3-8B": _llama(4096, 32, 32, 8, 14336, 128256, 8192),
        "meta-llama/Llama-3.1-8B": _llama(4096, 32, 32, 8, 14336, 128256, 131072),
        "meta-llama/Llama-3.1-70B": _llama(8192, 80, 64, 8, 28672, 128256, 131072),
        "meta-llama/Llama-3.2-1B": _llama(2048, 16, 32, 8, 8192, 128256, 131072, tied=True),
    },
    ("llama", "LlamaForCausalLM", "arXiv:2502.02737"): {
        "HuggingFaceTB/SmolLM2-135M": _llama(576, 30, 9, 3, 1536, 49152, 8192, tied=True),
    },
    ("mistral", "MistralForCausalLM", "arXiv:2310.06825"): {
        "mistralai/Mistral-7B-v0.1": _llama(4096, 32, 32, 8, 14336, 32000, 32768),
    },
    ("mixtral", "MixtralForCausalLM", "arXiv:2401.04088"): {
        "mistralai/Mixtral-8x7B-v0.1": _llama(4096, 32, 32, 8, 14336, 32000, 32768, **MOE),
    },
    ("qwen2", "Qwen2ForCausalLM", "arXiv:2412.15115"): {
        "Qwen/Qwen2.5-0.5B": _llama(896, 24, 14, 2, 4864, 151936, 32768, tied=True),
        "Qwen/Qwen2.5-7B": _llama(3584, 28, 28, 4, 18944, 152064, 131072),
    },
    ("qwen3", "Qwen3ForCausalLM", "arXiv:2505.09388"): {
        "Qwen/Qwen3-0.6B": _llama(1024, 28, 16, 8, 3072, 151936, 40960, tied=True, head_dim=128),
    },
    ("gemma", "GemmaForCausalLM", "arXiv:2403.08295"): {
        "google/gemma-2b": _llama(2048, 18, 8, 1, 16384, 256000, 8192, tied=True, head_dim=256),
        "google/gemma-7b": _llama(3072, 28, 16, 16, 24576, 256000, 8192, tied=True, head_dim=256),
    },
    ("phi", "PhiForCausalLM", "Javaheripi et al. 2023"): {
        "microsoft/phi-2": _llama(2560, 32, 32, 32, 10240, 51200, 2048, partial_rotary_factor=0.4),
    },
    ("t5", "T5ForConditionalGeneration", "arXiv:1910.10683"): {
        "google-t5/t5-small": _t5(512, 6, 8, 2048),
        "google-t5/t5-base": _t5(768, 12, 12, 3072),
        "google-t5/t5-large": _t5(1024, 24, 16, 4096),
        "google-t5/t5-3b": _t5(1024, 24, 32, 16384, d_kv=128),
        "google-t5/t5-11b": _t5(1024, 24, 128, 65536, d_kv=128),
    },
    ("t5", "T5ForConditionalGeneration", "arXiv:2002.05202"): {"google/t5-v1_1-base": _t5(768, 12, 12, 2048, **GATED)},
    ("t5", "T5ForConditionalGeneration", "arXiv:2210.11416"): {
        "google/flan-t5-small": _t5(512, 8, 6, 1024, **GATED),
        "google/flan-t5-base": _t5(768, 12, 12, 2048, **GATED),
    },
    ("mt5", "MT5ForConditionalGeneration", "arXiv:2010.11934"): {
        "google/mt5-small": _t5(512, 8, 6, 1024, 250112, **GATED),
    },
    ("bart", "BartForConditionalGeneration", "arXiv:1910.13461"): {
        "facebook/bart-base": _bart(768, 6, 12, 50265, 1024),
        "facebook/bart-large": _bart(1024, 12, 16, 50265, 1024),
    },
    ("marian", "MarianMTModel", "Tiedemann and Thottingal 2020"): {
        "Helsinki-NLP/opus-mt-en-de": _bart(512, 6, 8, 58101, 512) | {"pad_token_id": 58100},
    },
    ("vit", "ViTModel", "arXiv:2010.11929"): {
        "google/vit-base-patch16-224-in21k": _vit(768, 12, 12),
        "google/vit-large-patch16-224-in21k": _vit(1024, 24, 16),
    },
}  # fmt: skip
MODELS = tuple(
    Published(name, model_type, architecture, fields, source)
    for (model_type, architecture, source), models in TABLE.items()
    for name, fields in models.items()
)
NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size")
PAPERS = tuple(
    PaperOnly(name, dict(zip(NAMES, sizes, strict=True)) | more, parameters, source)
    for name, sizes, more, parameters, source in (
        ("transformer-base", (512, 6, 8, 64, 2048), {}, "65 M", "arXiv:1706.03762, table 3"),
        ("transformer-big", (1024, 6, 16, 64, 4096), {}, "213 M", "arXiv:1706.03762, table 3"),
        (
            "gpt-3", (12288, 96, 96, 128, 49152), {"max_position_embeddings": 2048}, "175.0 B",
            "arXiv:2005.14165, table 2.1",
        ),
        ("gpt-3-13b", (5140, 40, 40, 128, 20560), {"max_position_embeddings": 2048}, "13.0 B",
         "arXiv:2005.14165, table 2.1"),
        ("palm-540b", (18432, 118, 48, 256, 73728), {"num_key_value_heads": 1}, "540.35 B",
         "arXiv:2204.02311, section 2 and table 1"),
    )
)  # fmt: skip
KNOWN: tuple[Published | PaperOnly, ...] = (*MODELS, *PAPERS)
# Other names of a model, in lower case.
SHORT = {
    "bert": "bert-base-uncased", "bert-base": "bert-base-uncased", "bert-large": "bert-large-uncased",
    "roberta": "roberta-base", "distilbert": "distilbert-base-uncased", "albert": "albert-base-v2",
    "xlnet": "xlnet-base-cased", "gpt": "openai-gpt", "gpt-1": "openai-gpt", "gpt-2": "gpt2", "gpt2-small": "gpt2",
    "gpt3": "gpt-3", "davinci": "gpt-3", "llama-7b": "huggyllama/llama-7b", "llama-2-7b": "llama-2-7b-hf",
    "llama-2-13b": "llama-2-13b-hf", "llama-2-70b": "llama-2-70b-hf", "llama-3-8b": "meta-llama-3-8b",
    "mistral": "mistral-7b-v0.1", "mistral-7b": "mistral-7b-v0.1", "mixtral-8x7b": "mixtral-8x7b-v0.1",
    "t5": "t5-small", "bart": "bart-base", "palm": "palm-540b", "vaswani2017_base": "transformer-base",
    "vit": "vit-base-patch16-224-in21k", "vit-base": "vit-base-patch16-224-in21k",
    "vit-large": "vit-large-patch16-224-in21k", "minilm": "all-minilm-l6-v2",
}  # fmt: skip
# Pattern of names -> where it can be read that the sizes are not published.
CLOSED = (
    (r"gpt-?4.*", "OpenAI 2023, arXiv:2303.08774, section 2: no details about the architecture, including model size"),
    (r"gpt-?3\.5.*|chatgpt.*|gpt-?5.*|o[134](-.*)?", "OpenAI gives no sizes for it"),
    (r"claude.*", "Anthropic's model cards give no sizes"),
    (r"gemini.*(pro|ultra|flash).*|gemini", "arXiv:2312.11805 gives no sizes of Pro and Ultra"),
)
