"""The encoder that detects replaced tokens, and embeddings of another width. Stock weights: tests/hub/stock."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModelForPreTraining

from decero.models import DeceroEncoderForMaskedLM, DeceroEncoderForPreTraining, DeceroEncoderModel

POSITIONS = ["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative"]


@pytest.fixture
def model(make_config, randomize):
    return randomize(DeceroEncoderForPreTraining(make_config(embedding_size=23))).eval()


def test_a_logit_a_token_and_the_loss_of_real_tokens(model, batch):
    labels = torch.randint(0, 2, (3, 7))
    labels[0, 2] = -100
    out = model(**batch, labels=labels)
    assert out.logits.shape == (3, 7)
    scored = batch["attention_mask"].bool() & (labels >= 0)
    p = out.logits.sigmoid()[scored]
    expected = -torch.where(labels[scored] == 1, p.log(), (1 - p).log()).mean()
    assert_close(out.loss, expected)
    alone = model(batch["input_ids"][1:2, :5]).logits
    assert_close(alone, out.logits[1:2, :5], atol=1e-5, rtol=0)


def test_a_saved_discriminator_loads_with_its_auto_class(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert type(loaded) is DeceroEncoderForPreTraining
    assert_close(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("positions", POSITIONS)
def test_embeddings_of_another_width_are_projected(make_config, randomize, batch, positions):
    more = {"embedding_norm": True, "scale_embeddings": True, "type_vocab_size": 2}
    config = make_config(embedding_size=23, position_embedding_type=positions, **more)
    model = randomize(DeceroEncoderModel(config)).eval()
    assert model.embed_tokens.weight.shape == (37, 23)
    assert model.embed_projection.weight.shape == (33, 23)
    narrow = model.embed_tokens(batch["input_ids"])
    expected = model(inputs_embeds=narrow, attention_mask=batch["attention_mask"]).last_hidden_state
    assert_close(model(**batch).last_hidden_state, expected)
    seen = []
    model.embed_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(**batch)
    types = model.embed_token_types.weight[0]
    ids = torch.arange(7)[None]
    summed = narrow * 23**0.5 + types + model.embed_positions(ids)
    assert_close(seen[0], F.layer_norm(summed, (23,), model.embed_norm.weight, model.embed_norm.bias, 1e-6))


def test_the_tied_head_has_the_width_of_the_embeddings(make_config, randomize, batch):
    model = randomize(DeceroEncoderForMaskedLM(make_config(embedding_size=23))).eval()
    assert model.lm_head.decoder.weight is model.model.embed_tokens.weight
    assert model(**batch).logits.shape == (3, 7, 37)
    with pytest.raises(ValueError, match="embedding_size 23 differs from hidden_size, so lm_head_transform must be"):
        DeceroEncoderForMaskedLM(make_config(embedding_size=23, lm_head_transform=False))
