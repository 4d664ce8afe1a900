"""Building models and tokenizers from presets and checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from decero.config.sections import ModelSection, TokenizerSection
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.execution.build import build_model, tokenizer_for

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


@pytest.mark.parametrize(("own", "revisions"), [(None, ["v2"]), ("another/one", [None, "v2"])])
def test_a_pinned_checkpoint_uses_the_tokenizer_of_its_revision(own, revisions, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "decero.execution.build.load_tokenizer", lambda name, **how: seen.append(how.get("revision")) or tokenizer
    )
    tokenizer_for(TokenizerSection(name_or_path=own), ModelSection(name_or_path="a/model", revision="v2"), needs=())
    assert seen == revisions


def test_rows_may_be_as_long_as_the_positions_of_a_text(tokenizer):
    """RoBERTa has 514 position embeddings, 512 of them for a text."""
    sizes = {"vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32}
    assert model_of("roberta_base", AutoModelForMaskedLM, tokenizer, max_length=512, **sizes).config.pad_token_id == 0
    with pytest.raises(UserError, match="exceeds the 512 positions"):
        model_of("roberta_base", AutoModelForMaskedLM, tokenizer, max_length=513, **sizes)
