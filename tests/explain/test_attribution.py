"""Integrated gradients are complete, gradient x input is autograd's, and both find a planted token."""

import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    T5Config,
)

from decero.errors import UserError
from decero.explain.attribution import TOLERANCE, attribute
from decero.explain.explained import own_answer
from decero.explain.pieces import encode
from decero.models import DeceroEncoderConfig

SIZES = {"vocab_size": 97, "hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
T5 = {"vocab_size": 97, "d_model": 30, "d_kv": 7, "d_ff": 41, "num_layers": 2, "num_heads": 3}
BART = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 3))}
BART |= {"encoder_ffn_dim": 41, "decoder_ffn_dim": 41, "d_model": 30, "vocab_size": 97, "scale_embedding": True}
MODELS = {
    "label": (AutoModelForSequenceClassification, lambda: BertConfig(**SIZES, num_labels=3)),
    "next": (AutoModelForCausalLM, lambda: GPT2Config(vocab_size=97, n_embd=30, n_layer=2, n_head=3, **IDS)),
    "masked": (AutoModelForMaskedLM, lambda: DeceroEncoderConfig(**SIZES)),
    "target": (AutoModelForSeq2SeqLM, lambda: T5Config(**T5, **IDS, decoder_start_token_id=0)),
    "scaled": (AutoModelForSeq2SeqLM, lambda: BartConfig(**BART, **IDS, decoder_start_token_id=2)),
    "vector": (AutoModel, lambda: BertConfig(**SIZES)),
}
TEXT = "shares in [MASK] rose sharply on news"


@pytest.fixture
def case(tokenizer):
    """Build a model of a kind, and its own answer to a text."""

    def build(kind):
        torch.manual_seed(7)
        auto, config = MODELS[kind]
        model = auto.from_config(config()).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(std=0.15)
        inputs = encode(model, tokenizer, TEXT, None).inputs
        if model.config.is_encoder_decoder:
            inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
            inputs["decoder_input_ids"] = torch.tensor([[0, 11, 12, 13]])
        elif kind == "next":
            inputs.pop("token_type_ids", None)
        return model, own_answer(model, tokenizer, inputs)

    return build


@pytest.mark.parametrize(
    ("kind", "baseline"),
    [*((kind, "mask") for kind in MODELS), ("label", "zero"), ("next", "zero"), ("scaled", "zero")],
)
def test_attributions_sum_to_the_difference(kind, baseline, case, tokenizer):
    model, explained = case(kind)
    assert explained.what == {"scaled": "target"}.get(kind, kind)
    found = attribute(model, tokenizer, explained, baseline=baseline)
    outputs = 3 if explained.what == "target" else 1
    assert found.scores.shape == (outputs, explained.ids_1L.shape[1])
    assert found.complete
    whole = explained.scores(model).detach()[0].numpy()
    np.testing.assert_allclose(found.scores.sum(1), found.differences, atol=TOLERANCE)
    if baseline == "mask":  # independent: the model reads a text of mask tokens alone
        masked = torch.full_like(explained.ids_1L, tokenizer.mask_token_id)
        start = explained.scores(model, input_ids=masked).detach()[0].numpy()
        np.testing.assert_allclose(found.differences, whole - start, atol=1e-5)
    assert all(weight.requires_grad for weight in model.parameters())
    assert f"{found.differences.sum():.2f}" in found.describe("en")


def test_an_incomplete_integral_says_so(case, tokenizer, monkeypatch):
    """A norm that reads the embeddings alone jumps at zero, so no number of steps is enough."""
    monkeypatch.setattr("decero.explain.attribution.STEPS", (16, 32))
    model, explained = case("masked")
    found = attribute(model, tokenizer, explained, baseline="zero")
    assert not found.complete
    assert found.steps == 32
    assert "not complete" in found.describe("en")
    assert "No están completos" in found.describe("es")


def test_gradient_x_input_is_that_of_autograd(case, tokenizer):
    model, explained = case("label")
    found = attribute(model, tokenizer, explained, "gradient_x_input")
    embeds = model.get_input_embeddings()(explained.ids_1L).detach().requires_grad_()
    model(inputs_embeds=embeds).logits.log_softmax(-1)[0, explained.ids[0]].backward()
    np.testing.assert_allclose(found.scores[0], (embeds * embeds.grad).sum(-1)[0].detach().numpy(), atol=1e-6)
    assert found.baseline is None


def test_gradient_x_input_of_a_vector_is_zero(case, tokenizer):
    model, explained = case("vector")
    assert np.abs(attribute(model, tokenizer, explained, "gradient_x_input").scores).max() < 1e-5
    assert np.abs(attribute(model, tokenizer, explained).scores).max() > 1e-3


def test_summed_outputs_are_the_sum_of_outputs(case, tokenizer):
    model, explained = case("target")
    each = attribute(model, tokenizer, explained, "gradient_x_input").scores
    summed = attribute(model, tokenizer, explained, "gradient_x_input", summed=True).scores
    np.testing.assert_allclose(summed[0], each.sum(0), atol=1e-5)


def test_tokens_that_nobody_wrote_stay_in_the_baseline(case, tokenizer):
    model, explained = case("label")
    length = explained.ids_1L.shape[1]
    written = [0 < i < length - 1 for i in range(length)]
    found = attribute(model, tokenizer, explained, written=written)
    np.testing.assert_allclose(found.scores[0, [0, -1]], 0, atol=1e-6)


def test_missing_captum_gets_the_install_command(case, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model, explained = case("label")
    with pytest.raises(UserError, match=r"need captum: pip install 'decero\[explain\]'"):
        attribute(model, tokenizer, explained)


def test_a_baseline_without_its_token_is_refused(case, sentinel_tokenizer):
    model, explained = case("label")
    assert sentinel_tokenizer.mask_token_id is None
    with pytest.raises(UserError, match="no mask token; use the baseline zero"):
        attribute(model, sentinel_tokenizer, explained, baseline="mask")
    assert attribute(model, sentinel_tokenizer, explained).baseline == "pad"
