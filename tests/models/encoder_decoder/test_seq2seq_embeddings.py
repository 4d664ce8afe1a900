"""One table of embeddings for both stacks, or several."""

import pytest
import torch
from safetensors import safe_open
from tests.models.encoder_decoder.conftest import AUTO, HEAD
from torch.testing import assert_close

from decero.models import (
    DeceroEncoderDecoderConfig,
    DeceroEncoderDecoderModel,
)


def keys_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def tables(model):
    body = getattr(model, "model", model)
    return body.encoder.embed_tokens, body.decoder.embed_tokens


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
@pytest.mark.parametrize("tie", [True, False])
def test_the_stacks_share_embeddings_with_and_without_the_head(make_model, pairs, tmp_path, model_class, tie):
    model = make_model(model_class, tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    tied = {name for name in model.state_dict() if name.endswith("decoder.embed_tokens.weight")}
    assert len(tied) == 1
    assert keys_of(tmp_path) == model.state_dict().keys() - tied - ({"lm_head.weight"} if tie else set())
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for one in (model, loaded):
        encoder, decoder = tables(one)
        assert encoder.weight is decoder.weight
        assert model_class is not HEAD or (one.lm_head.weight is encoder.weight) is tie
        assert len({p.data_ptr() for p in one.parameters()}) == len(list(one.parameters()))
    assert torch.equal(loaded(**pairs)[0], model(**pairs)[0])


@pytest.mark.parametrize("size", [41, 31])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_resizing_the_vocabulary_keeps_ties_bias_and_scores(make_model, pairs, tmp_path, tie, bias, size):
    model = make_model(tie_word_embeddings=tie, lm_head_bias=bias)
    pairs = {name: value.clamp(max=30) for name, value in pairs.items()}
    before = model(**pairs).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    out = model(**pairs, labels=pairs["decoder_input_ids"])
    assert out.logits.shape == (3, 5, size)
    assert_close(out.logits[..., :31], before[..., :31])
    model.save_pretrained(tmp_path)
    loaded = HEAD.from_pretrained(tmp_path)
    assert torch.equal(loaded(**pairs).logits, out.logits)
    for one in (model, loaded):
        encoder, decoder = tables(one)
        assert encoder.weight.shape == one.lm_head.weight.shape == (size, 33)
        assert encoder.weight is decoder.weight
        assert (one.lm_head.weight is encoder.weight) is tie


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_both_stacks_receive_the_embeddings_that_are_exchanged(make_model, model_class):
    model, other = make_model(model_class), torch.nn.Embedding(41, 33)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert all(table is other for table in tables(model))


@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_the_checkpoint_lacks_is_initialised(make_config, randomize, pairs, tmp_path, tie):
    slots = {"initializer_range": 0.5, "tie_word_embeddings": tie, "lm_head_bias": True}
    body = randomize(DeceroEncoderDecoderModel(make_config(DeceroEncoderDecoderConfig, **slots)), std=0.1).eval()
    body.save_pretrained(tmp_path)
    model, report = HEAD.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"lm_head.bias", *([] if tie else ["lm_head.weight"])}
    assert model.lm_head.weight.std().item() == pytest.approx(0.1 if tie else 0.5, rel=0.1)
    assert model.lm_head.bias.eq(0).all()
    assert torch.equal(model.model(**pairs)[0], body(**pairs)[0])
    encoder, decoder = tables(model)
    assert encoder.weight is decoder.weight
