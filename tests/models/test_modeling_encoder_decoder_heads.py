"""Heads of an encoder-decoder that classify, label and answer: padding, checkpoints, packed rows."""

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)

from decero.data.packing import Packed
from decero.execution.packed_forward import logits_of, prove
from decero.models import DeceroDecoderConfig, DeceroEncoderDecoderConfig

CLASSIFIER, TAGGER, ANSWERER = (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
)
RELATIVE = {"position_embedding_type": "relative", "relative_attention_num_buckets": 8, "scale_attn_weights": False}


@pytest.fixture
def build(make_config, randomize):
    def made(auto, config_class=DeceroEncoderDecoderConfig, **fields):
        config = make_config(config_class, **{"num_labels": 5, "eos_token_id": 2, "decoder_start_token_id": 3} | fields)
        return randomize(auto.from_config(config)).eval()

    return made


def scores(model, **inputs):
    out = model(**inputs)
    return torch.stack([out.start_logits, out.end_logits], dim=-1) if "start_logits" in out else out.logits


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("auto", [CLASSIFIER, TAGGER, ANSWERER], ids=lambda auto: auto.__name__)
def test_padding_on_either_side_changes_no_score(build, auto, side):
    model = build(auto, **RELATIVE)
    text, padding = torch.randint(4, 37, (1, 5)), torch.zeros(1, 6, dtype=torch.long)
    parts = [padding, text] if side == "left" else [text, padding]
    mask = torch.cat(parts, dim=1).bool().long()
    with torch.no_grad():
        alone = scores(model, input_ids=text)
        padded = scores(model, input_ids=torch.cat(parts, dim=1), attention_mask=mask)
    found = padded if auto is CLASSIFIER else padded[mask.bool()][None]
    assert_close(found, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("auto", [CLASSIFIER, TAGGER, ANSWERER], ids=lambda auto: auto.__name__)
def test_a_head_reads_embeddings_as_it_reads_tokens(build, auto):
    model, ids = build(auto), torch.randint(4, 37, (3, 7))
    mask = torch.ones_like(ids)
    embeds = model.get_input_embeddings()(ids)
    assert_close(scores(model, inputs_embeds=embeds, attention_mask=mask), scores(model, input_ids=ids))


@pytest.mark.parametrize("auto", [CLASSIFIER, ANSWERER], ids=lambda auto: auto.__name__)
def test_a_reader_says_what_is_missing(build, auto):
    ids = torch.randint(4, 37, (3, 7))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        build(auto)(attention_mask=torch.ones_like(ids))
    with pytest.raises(ValueError, match="needs decoder_start_token_id"):
        build(auto, decoder_start_token_id=None, pad_token_id=None)(ids)
    with pytest.raises(TypeError, match="does not read decoder_input_ids"):
        build(auto)(ids, decoder_input_ids=ids)


def test_heads_begin_with_the_weights_of_a_checkpoint(build, tmp_path):
    trained = build(AutoModelForSeq2SeqLM, tie_word_embeddings=False)
    trained.save_pretrained(tmp_path)
    ids = torch.randint(4, 37, (3, 7))
    encoded = trained.get_encoder()(ids).last_hidden_state
    for auto in (CLASSIFIER, ANSWERER, TAGGER, AutoModelForTextEncoding):
        model, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert {name.split(".")[0] for name in report["missing_keys"]} <= {
            "classification_head",
            "classifier",
            "qa_outputs",
        }
        stack = model.get_encoder() if auto is not AutoModelForTextEncoding else model
        assert_close(stack(ids).last_hidden_state, encoded)
        if auto in (CLASSIFIER, ANSWERER):
            assert model.model.decoder.embed_tokens.weight is model.model.encoder.embed_tokens.weight
            assert set(report["unexpected_keys"]) == {"lm_head.weight"}
        model.save_pretrained(tmp_path / auto.__name__)
        again = auto.from_pretrained(tmp_path / auto.__name__)
        assert all(
            torch.equal(one, two)
            for one, two in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("auto", [TAGGER, ANSWERER], ids=lambda auto: auto.__name__)
@pytest.mark.parametrize("shape", ["rotary", "learned", "relative", "decoder"])
def test_packed_rows_are_scored_as_padded_ones(build, shape, auto, backend):
    slots = RELATIVE if shape == "relative" else {"position_embedding_type": shape.replace("decoder", "rotary")}
    more = {"config_class": DeceroDecoderConfig} if shape == "decoder" else {}
    model = build(auto, **more, **slots)
    model.set_attn_implementation(backend)
    lengths = torch.tensor([7, 5, 2, 11, 3, 3, 9, 1])
    mask = (torch.arange(11) < lengths[:, None]).long()
    batch = {"input_ids": torch.randint(4, 37, (8, 11)) * mask, "attention_mask": mask}
    packed = Packed(lambda rows: dict(batch), 16)([])
    assert len(packed["input_ids"]) < 8
    assert prove(model, batch, packed) is None
    with torch.no_grad():
        expected, found = logits_of(model, batch)[mask.bool()], logits_of(model, packed)
    order = packed["text_ids"][packed["text_ids"] > 0].argsort(stable=True)
    assert_close(found[packed["text_ids"] > 0][order], expected, atol=2e-5, rtol=0)
