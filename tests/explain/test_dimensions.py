"""Dimensions and parameters from configurations alone: exact, by part, offline."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch
import transformers as hf
from transformers import AutoModel, AutoModelForMaskedLM

from decero.errors import UserError
from decero.explain.dimensions import Inspection, Token, inspect_model
from decero.explain.parameter_parts import parts_of, tied_weights
from decero.explain.parameter_picture import save_picture
from decero.explain.published import KNOWN, NotPublished, published
from decero.explain.stack_sizes import dimensions_of
from decero.models import DeceroEncoderConfig

# Numbers of parameters as the hub shows them, or as papers and model cards state them; for the class of the checkpoint.
PUBLISHED = {
    "google-bert/bert-base-uncased": 109_514_298,
    "google-bert/bert-large-uncased": 335_174_458,
    "FacebookAI/roberta-base": 124_697_433,
    "FacebookAI/xlm-roberta-base": 278_295_186,
    "distilbert/distilbert-base-uncased": 66_985_530,
    "google/electra-small-discriminator": 13_549_057,
    "microsoft/deberta-v3-base": 183_831_552,
    "answerdotai/ModernBERT-base": 149_655_232,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "bigscience/bloom": 176_247_271_424,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "google/gemma-2b": 2_506_172_416,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "google-t5/t5-small": 60_506_624,
    "google/flan-t5-small": 76_961_152,  # its head is not tied
    "google/mt5-small": 300_176_768,
    "facebook/bart-base": 139_420_416,
    "Helsinki-NLP/opus-mt-en-de": 74_410_496,
    "sentence-transformers/all-MiniLM-L6-v2": 22_713_216,
    "google/vit-base-patch16-224-in21k": 86_389_248,
}
BARE = {
    "bert-base-uncased": 109_482_240,
    "roberta-base": 124_645_632,
    "gpt2": 124_439_808,
    "albert-base-v2": 11_683_584,
}
PRIMES = {"hidden_size": 42, "num_hidden_layers": 3, "num_attention_heads": 7, "vocab_size": 101}
LLAMA = PRIMES | {"num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 59, "max_position_embeddings": 37}
# family: (configuration, dimensions). Sizes that a configuration does not have are found in the weights.
FAMILIES = {
    "bert": (
        lambda: hf.BertConfig(**PRIMES, intermediate_size=59, max_position_embeddings=37),
        {"model": PRIMES | {"num_key_value_heads": 7, "head_dim": 6, "intermediate_size": 59,
                            "max_position_embeddings": 37}},
    ),
    "roberta": (
        lambda: hf.RobertaConfig(**PRIMES, intermediate_size=59, max_position_embeddings=39, pad_token_id=1),
        {"model": PRIMES | {"num_key_value_heads": 7, "head_dim": 6, "intermediate_size": 59,
                            "max_position_embeddings": 37}},
    ),
    "llama": (lambda: hf.LlamaConfig(**LLAMA), {"model": LLAMA}),
    "gpt2": (
        lambda: hf.GPT2Config(n_embd=42, n_layer=3, n_head=7, n_positions=37, vocab_size=101),
        {"model": PRIMES | {"num_key_value_heads": 7, "head_dim": 6, "intermediate_size": 168,
                            "max_position_embeddings": 37}},
    ),
    "falcon": (
        lambda: hf.FalconConfig(**PRIMES, multi_query=True, max_position_embeddings=37),
        {"model": PRIMES | {"num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 168,
                            "max_position_embeddings": 37}},
    ),
    "t5": (
        lambda: hf.T5Config(d_model=42, num_layers=3, num_decoder_layers=2, num_heads=7, d_kv=11, d_ff=59,
                            vocab_size=101),
        {stack: PRIMES | {"num_key_value_heads": 7, "head_dim": 11, "intermediate_size": 59, "num_hidden_layers": n}
         for stack, n in (("encoder", 3), ("decoder", 2))},
    ),
    "ours": (
        lambda: DeceroEncoderConfig(**PRIMES, intermediate_size=59, max_position_embeddings=37),
        {"model": PRIMES | {"num_key_value_heads": 7, "head_dim": 6, "intermediate_size": 59,
                            "max_position_embeddings": 37}},
    ),
}  # fmt: skip


DEEP = ("google-bert/bert-large-uncased", "FacebookAI/xlm-roberta-base", "openai-community/gpt2-medium",
        "openai-community/gpt2-large", "EleutherAI/gpt-j-6b", "bigscience/bloom", "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-70b-hf", "Qwen/Qwen2.5-0.5B", "google/gemma-2b", "google/mt5-small", "facebook/bart-base",
        "HuggingFaceTB/SmolLM2-135M")  # fmt: skip
COUNTED = [pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else []) for name in PUBLISHED]


@pytest.mark.parametrize("name", COUNTED)
def test_known_models_have_their_published_parameters(name):
    found = inspect_model(name)
    assert isinstance(found, Inspection)
    assert found.parameters == PUBLISHED[name] == sum(found.parts.values())
    assert "other" not in found.parts


@pytest.mark.parametrize("name", BARE)
def test_the_model_without_a_head_is_counted_too(name):
    assert inspect_model(name).base[1] == BARE[name]


def test_the_table_has_every_count_and_names_are_unique():
    assert {model.name for model in KNOWN} >= set(PUBLISHED)
    names = [model.name.lower() for model in KNOWN]
    short = [name.rpartition("/")[2] for name in names]
    assert len(set(names)) == len(names) == len(set(short))
    assert published("BERT-base-uncased") is published("google-bert/bert-base-uncased") is published("bert")


@pytest.mark.parametrize(
    ("name", "size"), [("gpt2", 768), ("gpt2-xl", 1600), ("gpt-3", 12_288), ("mistral-7b", 4096), ("bert", 768)]
)
def test_embedding_sizes_that_texts_name_are_the_published(name, size):
    assert inspect_model(name).dimensions["model"]["hidden_size"] == size


@pytest.mark.parametrize("name", ["gpt-4", "openai/gpt-4o", "GPT-3.5-turbo", "claude-3-opus", "anthropic/claude", "o1"])
def test_what_is_not_published_is_said(name):
    found = inspect_model(name)
    assert isinstance(found, NotPublished)
    assert found.source


def test_open_models_with_such_names_are_not_called_closed():
    assert published("nomic-ai/gpt4all-j") is None
    assert published("Xenova/claude-tokenizer") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_dimensions_are_those_that_were_set(family):
    make, expected = FAMILIES[family]
    with torch.device("meta"):
        model = AutoModel.from_config(make())
    assert dimensions_of(model) == expected


def test_parts_equal_a_count_by_hand():
    config = hf.BertConfig(**PRIMES, intermediate_size=59, max_position_embeddings=37)
    model = AutoModelForMaskedLM.from_config(config)
    d, f = 42, 59
    assert parts_of(model) == {
        "embeddings": 101 * d + 2 * d,
        "positions": 37 * d,
        "attention": 3 * 4 * (d * d + d),
        "feed-forward": 3 * (2 * d * f + d + f),
        "norms": (1 + 2 * 3) * 2 * d,
        "heads": d * d + d + 2 * d + 101,
    }
    assert [(name, other, n) for name, other, n in tied_weights(model) if n > 101] == [
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight", 101 * d)
    ]


def test_memory_counts_bytes_of_weights_and_of_adamw():
    assert inspect_model("gpt2").memory == {
        "fp32": {"weights": 4 * 124_439_808, "training": 16 * 124_439_808},
        "bf16": {"weights": 2 * 124_439_808, "training": 8 * 124_439_808},
        "int8": {"weights": 124_439_808, "training": None},
    }


def test_folder_file_and_preset_give_the_same(tmp_path, tokenizer):
    config = hf.BertConfig(**PRIMES | {"vocab_size": len(tokenizer)}, architectures=["BertForMaskedLM"])
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sizes = f"vocab_size: {len(tokenizer)}, hidden_size: 42, num_hidden_layers: 3, num_attention_heads: 7"
    (tmp_path / "preset.yaml").write_text(f"{{model_type: bert, {sizes}}}")
    counts = {inspect_model(str(tmp_path / name)).parameters for name in ("", "config.json", "preset.yaml")}
    assert counts == {sum(p.numel() for p in AutoModelForMaskedLM.from_config(config).parameters())}
    tokens = inspect_model(str(tmp_path), "the market").tokens
    ids = tokenizer("the market")["input_ids"]
    assert [token.id for token in tokens] == ids
    assert tokens[0] == Token(ids[0], "[CLS]", "[CLS]")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "bertt"}, "did you mean bert"),
        ({"hidden_size": 7}, "model_type"),
        ({"model_type": "bert", "num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"model_type": "bert", "hidden_size": 43, "num_attention_heads": 2}, "43"),
        ({"model_type": "bert", "vocab_size": -5}, "config"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path, fields, says):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=says):
        inspect_model(str(path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bert-base-uncasd", "did you mean bert-base-uncased"),
        ("mistralai/Mistral-7B-v0.11", "did you mean mistralai/Mistral-7B-v0.1"),
        ("/no/such/folder", "no such folder"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, says):
    with pytest.raises(UserError, match=says):
        inspect_model(name)


def test_tokens_need_a_tokenizer(tmp_path):
    hf.BertConfig(**PRIMES).save_pretrained(tmp_path)
    for name in (str(tmp_path), "gpt2", "gpt-3"):
        with pytest.raises(UserError, match=r"tokenizer|download"):
            inspect_model(name, "a text")
    with pytest.raises(UserError, match=r"config\.json: no tokenizer beside this file; leave out --text"):
        inspect_model(str(tmp_path / "config.json"), "a text")


def test_a_known_name_with_a_lost_revision_is_not_unknown():
    with pytest.raises(UserError) as refused:
        inspect_model("gpt2", revision="0" * 40)
    assert "unknown model" not in str(refused.value)


@pytest.mark.parametrize("kind", ["png", "svg", "SVG"])
def test_pictures_are_equal_for_equal_models(tmp_path, kind):
    found = inspect_model("gpt2")
    one, two = tmp_path / f"one.{kind}", tmp_path / f"two.{kind}"
    save_picture(found, one)
    save_picture(found, two)
    assert one.read_bytes() == two.read_bytes()
    if kind != "png":
        texts = " ".join(ET.fromstring(one.read_text()).itertext())
        assert "feed-forward" in texts
        assert "124,439,808" in texts
