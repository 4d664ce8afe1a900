"""Scales that T5 lacks move into the weights: the stock model computes the same."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    T5EncoderModel,
)

from decero.errors import UserError
from decero.hub.families.folding import fold_config
from decero.hub.stock import to_stock

SIZES = {"vocab_size": 37, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 7}
SIZES |= {"intermediate_size": 41, "gated_mlp": True, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
SIZES |= {"norm_type": "rmsnorm", "norm_placement": "pre", "position_embedding_type": "relative", "lm_head_bias": False}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0, "eos_token_id": 1}


def built(auto_class=AutoModelForSeq2SeqLM, kind="decero_encoder_decoder", **fields):
    torch.manual_seed(5)
    return auto_class.from_config(AutoConfig.for_model(kind, **(SIZES | fields))).eval()


@pytest.fixture
def batch():
    torch.manual_seed(3)
    ids = torch.randint(2, 37, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_translator_leaves_as_a_stock_t5(attention, embeddings, tied, batch):
    ours = built(scale_attn_weights=attention, scale_embeddings=embeddings, tie_word_embeddings=tied)
    if tied and not embeddings:  # a tied T5 divides by the root of the width
        ours.config.scale_lm_head = True
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    stock = to_stock(ours, "t5").eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items()), "ours is changed"
    labels = torch.randint(2, 37, (2, 5))
    one, other = ours(**batch, labels=labels), stock(**batch, labels=labels)
    torch.testing.assert_close(one.logits, other.logits, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(one.loss, other.loss, atol=1e-5, rtol=0)
    assert (stock.lm_head.weight is stock.shared.weight) is tied
    assert stock.encoder.embed_tokens.weight is stock.shared.weight
    assert stock.decoder.embed_tokens.weight is stock.shared.weight
    assert stock.config.scale_decoder_outputs is tied


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification, AutoModelForQuestionAnswering])
def test_other_heads_leave_with_their_scales(auto_class, batch):
    fields = {} if auto_class is AutoModel else {"num_labels": 2}
    batch["input_ids"][:, 8], batch["input_ids"][:, 9:] = 1, 0  # one end of text in each row, as T5's classifier wants
    batch["attention_mask"][:, :9], batch["attention_mask"][:, 9:] = 1, 0
    batch["input_ids"][:, :8] = batch["input_ids"][:, :8].clamp(min=2)
    ours = built(auto_class, scale_attn_weights=True, scale_embeddings=True, **fields)
    stock = to_stock(ours, "t5").eval()
    extra = {"decoder_input_ids": batch["input_ids"]} if auto_class is AutoModel else {}
    one, other = ours(**batch, **extra)[0], stock(**batch, **extra)[0]
    if auto_class is not AutoModelForSequenceClassification:
        one, other = one[:, :9], other[:, :9]
    torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-5)


def test_an_encoder_alone_leaves_with_its_scales(batch):
    ours = built(AutoModel, "decero_encoder", scale_attn_weights=True, scale_embeddings=True, type_vocab_size=0)
    stock = to_stock(ours, "t5").eval()
    assert type(stock) is T5EncoderModel
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours(**batch)[0][real], stock(**batch)[0][real], atol=3e-5, rtol=1e-5)


def test_a_model_in_the_manner_of_t5_stays_as_it_is():
    config = built(scale_attn_weights=False, scale_lm_head=True).config
    assert fold_config(config) is config


def test_two_scales_on_one_table_are_refused():
    ours = built(scale_embeddings=True, scale_lm_head=True)
    with pytest.raises(UserError, match="scale_embeddings=True has no counterpart in t5"):
        to_stock(ours, "t5")
