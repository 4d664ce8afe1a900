"""Building models and tokenizers from presets and checkpoints."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    T5Config,
)

from decero.config.sections import ModelSection, TokenizerSection
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.execution.build import build_model, check_vocab_size, tokenizer_for
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig

PRESETS = Path(__file__).parents[2] / "configs" / "model"


@pytest.fixture(scope="module")
def byte_level(texts):
    """Train a tokenizer with <s> 0, <pad> 1, </s> 2. The WordPiece fixture has only [PAD] 0."""
    return train_tokenizer(
        texts, algorithm="byte_level_bpe", vocab_size=261, model_max_length=64, show_progress=False
    )  # fmt: skip


def model_of(name, auto_class, tokenizer, max_length=48, **overrides):
    section = ModelSection(config=str(PRESETS / f"{name}.yaml"), overrides=overrides)
    with torch.device("meta"):
        return build_model(section, auto_class, tokenizer, max_length, seed=0)


@pytest.mark.parametrize(
    ("name", "auto_class"),
    [
        ("modern_encoder_tiny", AutoModelForMaskedLM),
        ("modern_decoder_tiny", AutoModelForCausalLM),
        ("modern_encoder_decoder_tiny", AutoModelForSeq2SeqLM),
        ("stock_gpt2_tiny", AutoModelForCausalLM),
        ("stock_t5_tiny", AutoModelForSeq2SeqLM),
        ("stock_marian_tiny", AutoModelForSeq2SeqLM),
    ],
)
def test_presets_are_built_with_the_special_ids_of_the_tokenizer(name, auto_class, byte_level, tokenizer):
    config = model_of(name, auto_class, byte_level).config
    assert (config.pad_token_id, config.eos_token_id) == (1, 2)
    if config.is_encoder_decoder:
        assert config.decoder_start_token_id == 1
    config = model_of(name, auto_class, tokenizer).config
    assert config.pad_token_id == 0
    if config.is_encoder_decoder:
        assert config.decoder_start_token_id == 0
    assert model_of(name, auto_class, tokenizer, eos_token_id=7).config.eos_token_id == 7


def test_a_preset_of_the_wrong_kind_is_refused_with_advice(tokenizer):
    with pytest.raises(UserError) as refused:
        model_of("gpt2", AutoModelForMaskedLM, tokenizer)
    assert str(refused.value).endswith(
        "gpt2.yaml: no AutoModelForMaskedLM for model_type decero_decoder; use decero_encoder"
    )


def test_a_preset_larger_than_the_memory_is_one_line(tokenizer):
    sizes = {"hidden_size": 16384, "num_hidden_layers": 40, "num_attention_heads": 128, "intermediate_size": 65536}
    section = ModelSection(config="configs/model/modern_decoder_base.yaml", overrides=sizes | {"vocab_size": 211})
    with pytest.raises(UserError) as refused:
        build_model(section, AutoModelForCausalLM, tokenizer, 64, 0)
    said = str(refused.value)
    layer = 4 * 16384**2 + 3 * 16384 * 65536 + 2 * 16384
    billions = (40 * layer + 16384 + 211 * 16384) / 1e9
    assert said.startswith(f"configs/model/modern_decoder_base.yaml: {billions:.1f} billion parameters need ")
    assert "of memory are free; choose a smaller model" in said
    assert "\n" not in said


@pytest.mark.parametrize(("own", "revisions"), [(None, ["v2"]), ("another/one", [None, "v2"])])
def test_a_pinned_checkpoint_uses_the_tokenizer_of_its_revision(own, revisions, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "decero.execution.build.load_tokenizer", lambda name, **how: seen.append(how.get("revision")) or tokenizer
    )
    tokenizer_for(TokenizerSection(name_or_path=own), ModelSection(name_or_path="a/model", revision="v2"), needs=())
    assert seen == revisions


def test_a_tokenizer_that_is_gone_can_be_the_checkpoints_own(tmp_path):
    said = (
        r"tokenizer.name_or_path: .*/gone: no such folder; tokenizer.name_or_path=null takes the tokenizer of a/model"
    )
    with pytest.raises(UserError, match=said):
        tokenizer_for(TokenizerSection(name_or_path=f"{tmp_path}/gone"), ModelSection(name_or_path="a/model"), needs=())


def test_rows_may_be_as_long_as_the_positions_of_a_text(tokenizer):
    """RoBERTa has 514 position embeddings, 512 of them for a text."""
    tokenizer = copy.deepcopy(tokenizer)  # its model_max_length changes
    sizes = {"vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32}
    assert model_of("roberta_base", AutoModelForMaskedLM, tokenizer, max_length=512, **sizes).config.pad_token_id == 0
    with pytest.raises(UserError, match="exceeds the 512 positions"):
        model_of("roberta_base", AutoModelForMaskedLM, tokenizer, max_length=513, **sizes)


@pytest.mark.parametrize("overrides", [{"pad_token_id": 50000}, {"pad_token_id": -1}, {"eos_token_id": [2, 50000]}])
@pytest.mark.parametrize("name", ["modern_decoder_tiny", "stock_gpt2_tiny"])
def test_special_ids_beyond_the_vocabulary_are_refused(name, overrides, byte_level):
    with pytest.raises(
        UserError, match=r"_token_id (50000|-1) is outside of the vocabulary of \d+; model\.overrides\."
    ):
        model_of(name, AutoModelForCausalLM, byte_level, **overrides)


SIZES = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 29}
T5 = {"d_model": 24, "d_kv": 12, "d_ff": 29, "num_layers": 1, "num_heads": 2}
KINDS = {
    "bert": (AutoModelForMaskedLM, lambda V: BertConfig(vocab_size=V, **SIZES)),
    "encoder": (AutoModelForMaskedLM, lambda V: DeceroEncoderConfig(vocab_size=V, **SIZES)),
    "llama": (AutoModelForCausalLM, lambda V: LlamaConfig(vocab_size=V, **SIZES, pad_token_id=0)),
    "decoder": (AutoModelForCausalLM, lambda V: DeceroDecoderConfig(vocab_size=V, **SIZES, pad_token_id=0)),
    "t5": (AutoModelForSeq2SeqLM, lambda V: T5Config(vocab_size=V, **T5, decoder_start_token_id=0)),
    "both": (
        AutoModelForSeq2SeqLM,
        lambda V: DeceroEncoderDecoderConfig(vocab_size=V, **SIZES, pad_token_id=0, decoder_start_token_id=0),
    ),
    "classifier": (AutoModelForSequenceClassification, lambda V: BertConfig(vocab_size=V, **SIZES)),
}


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Save a checkpoint whose embedding has a row for each token; return its settings and a copy of its tokenizer."""

    def save(kind, **fields):
        auto, config = KINDS[kind]
        config = config(len(tokenizer))
        config.update(fields)
        model = auto.from_config(config)
        model.save_pretrained(tmp_path / "model")
        return auto, ModelSection(name_or_path=str(tmp_path / "model")), copy.deepcopy(tokenizer), model

    return save


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_get_new_rows(kind, saved, capsys):
    auto, section, tokenizer, before = saved(kind)
    size = len(tokenizer)
    tokenizer.add_tokens(["<one>", "<two>"])
    model = build_model(section, auto, tokenizer, 16, seed=0)
    assert f"the embedding has {size + 2} rows instead of {size}" in capsys.readouterr().err
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == size + 2
    assert torch.equal(model.get_input_embeddings().weight[:size], before.get_input_embeddings().weight)
    batch = dict(tokenizer("the bank <two>", return_tensors="pt", return_token_type_ids=False))
    batch |= {"decoder_input_ids": batch["input_ids"]} if model.config.is_encoder_decoder else {}
    logits = model(**batch).logits
    assert logits.isfinite().all()
    if kind != "classifier":
        assert logits.shape[-1] == size + 2
    model.save_pretrained(section.name_or_path)
    assert torch.equal(build_model(section, auto, tokenizer, 16, seed=1)(**batch).logits, logits)


def test_another_tokenizer_is_refused_and_the_mend_works(saved, byte_level):
    auto, section, _, _ = saved("bert")
    with pytest.raises(UserError, match=r"largest id is 260 .* set model\.overrides\.vocab_size=261"):
        build_model(section, auto, byte_level, 16, seed=0)
    section = section.model_copy(update={"overrides": {"vocab_size": 261}})
    assert build_model(section, auto, byte_level, 16, seed=0).config.vocab_size == 261


def test_a_folder_with_added_tokens_extends_the_own_tokenizer(saved, tokenizer_folder, byte_level, tmp_path):
    _, section, tokenizer, _ = saved("bert")
    tokenizer.save_pretrained(section.name_or_path)
    tokenizer.add_tokens(["<one>"])
    tokenizer.save_pretrained(tmp_path / "more")
    found = tokenizer_for(TokenizerSection(name_or_path=str(tmp_path / "more")), section, needs=())
    assert "<one>" in found.get_vocab()
    byte_level.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="gives other ids"):
        tokenizer_for(TokenizerSection(name_or_path=str(tmp_path / "other")), section, needs=())


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="transformers 5.22 saves no such model")
def test_a_negative_padding_id_of_a_checkpoint_means_none(saved):
    auto, section, tokenizer, _ = saved("llama", pad_token_id=-1)
    assert build_model(section, auto, tokenizer, 16, seed=0).config.pad_token_id == tokenizer.pad_token_id
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model = build_model(section, auto, tokenizer, 16, seed=0)
    assert model.config.pad_token_id == tokenizer.pad_token_id == model.config.vocab_size - 1
    auto, section, tokenizer, _ = saved("llama", pad_token_id=None)
    beyond = section.model_copy(update={"overrides": {"pad_token_id": 5000}})
    with pytest.raises(UserError, match="pad_token_id 5000 is outside of the vocabulary"):
        build_model(beyond, auto, tokenizer, 16, seed=0)


def test_a_checkpoint_of_the_wrong_kind_is_one_line(saved, tokenizer):
    _, section, _, _ = saved("bert")
    with pytest.raises(UserError, match="no AutoModelForSeq2SeqLM for model_type bert"):
        build_model(section, AutoModelForSeq2SeqLM, tokenizer, 16, seed=0)


def test_a_vocabulary_is_checked_without_a_tokenizer(saved, tmp_path):
    check_vocab_size(saved("bert")[1], 97)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size 98 exceeds the vocabulary of .*, 97; lower it to 97"):
        check_vocab_size(saved("bert")[1], 98)
    preset = tmp_path / "preset.yaml"
    for text, said in (("vocab_size: 5", "no model_type"), ("model_type: brt", "did you mean bert")):
        preset.write_text(text)
        with pytest.raises(UserError, match=said):
            check_vocab_size(ModelSection(config=str(preset)), 98)
    preset.write_text("model_type: vit")
    with pytest.raises(UserError, match="vit has no vocabulary"):
        check_vocab_size(ModelSection(config=str(preset)), 98)
