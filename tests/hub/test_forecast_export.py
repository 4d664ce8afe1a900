"""What a run says at its start is what `decero export` does at its end."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from ruamel.yaml import YAML

from decero.hub.forecast_export import STOCK_PRESETS, export_line, find_family

FOLDER = Path(__file__).parents[2] / "configs" / "model"
HEADS = {
    "DeceroEncoder": hf.AutoModelForMaskedLM, "DeceroDecoder": hf.AutoModelForCausalLM,
    "DeceroEncoderDecoder": hf.AutoModelForSeq2SeqLM, "DeceroVision": hf.AutoModelForImageClassification,
    "texts": hf.AutoModelForSequenceClassification, "words": hf.AutoModelForTokenClassification,
    "regions": hf.AutoModelForSemanticSegmentation, "objects": hf.AutoModelForObjectDetection,
}  # fmt: skip


def build(name, head, **overrides):
    fields = YAML(typ="safe", pure=True).load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return HEADS.get(head, head).from_config(hf.AutoConfig.for_model(**(fields | overrides)))


@pytest.mark.parametrize("shape", STOCK_PRESETS)
def test_a_preset_that_is_advised_leaves_as_stock(shape):
    for size, name, family in STOCK_PRESETS[shape]:
        model = build(name, shape)
        assert model.config.hidden_size == size
        assert find_family(model)[0].name == family
        assert export_line(model).startswith(f"this model can be exported as {family}")


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("classic_encoder_tiny", "DeceroEncoder", "this model can be exported as bert"),
        (
            "eurobert_small", "DeceroEncoder",
            "this model can be exported as eurobert; fine-tuned for answers, choices it leaves as remote code",
        ),
        ("modernbert_tiny", "DeceroEncoder", "this model can be exported as modernbert"),
        (
            "modern_encoder_tiny", "DeceroEncoder",
            "this model leaves as remote code, because embedding_norm=False has no counterpart in modernbert, which "
            "has True; configs/model/modernbert_tiny.yaml can be exported as modernbert",
        ),
        (
            "modern_encoder_small", "DeceroEncoder",
            "this model leaves as remote code, because norm_type='rmsnorm' has no counterpart in modernbert, which has "
            "'layernorm'; configs/model/modernbert_small.yaml can be exported as modernbert",
        ),
        (
            "modern_encoder_decoder_tiny", "DeceroEncoderDecoder",
            "this model leaves as remote code, because norm_type='layernorm' has no counterpart in t5, which has "
            "'rmsnorm'; configs/model/t5_gated_tiny.yaml can be exported as t5",
        ),
        (
            "lstm_tiny", "DeceroDecoder",
            "this model leaves as remote code, because mixer_type='lstm' has no counterpart in stablelm; "
            "configs/model/modern_decoder_tiny.yaml can be exported as stablelm",
        ),
        (
            "recurrent_lm_tiny", "DeceroDecoder",
            "this model leaves as remote code, because no stock class has its layers; "
            "configs/model/modern_decoder_tiny.yaml can be exported as stablelm",
        ),
        ("eurobert_small", "words", "this model can be exported as eurobert"),
        (
            "gated_conv_tiny", "words",  # no advice to take stablelm, which has no such head
            "this model leaves as remote code, because mixer_type='conv' has no counterpart in llama; "
            "configs/model/modern_decoder_small.yaml can be exported as llama",
        ),
        ("vit_tiny", "regions", "this model leaves as remote code, because no stock class has its head"),
        (
            "detr_tiny", "objects",
            "this model leaves as remote code, because norm_placement='pre' has no counterpart in detr, which has "
            "'post'",
        ),
        ("textcnn_tiny", "texts", "this model leaves as remote code, because no stock class has its layers"),
    ],
)  # fmt: skip
def test_the_line_at_the_start_of_a_run(name, head, said):
    assert export_line(build(name, head)) == said


def test_a_hybrid_and_a_stock_model():
    hybrid = build("modern_decoder_small", "DeceroDecoder")
    hybrid.config.pretraining_objective = "hybrid_lm"
    assert "because none fills holes with a decoder's weights" in export_line(hybrid)
    assert export_line(build("stock_bert_tiny", "DeceroEncoder")) is None
