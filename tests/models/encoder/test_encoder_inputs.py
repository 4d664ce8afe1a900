"""Positions, segments and embeddings."""

import pytest
import torch
import torch.nn.functional as F
from tests.models.encoder.conftest import AUTO, HEADS, POSITIONS, SLIDING
from torch.testing import assert_close

from decero.models import (
    DeceroEncoderForMaskedLM,
    DeceroEncoderForSequenceClassification,
)


def test_without_positions_the_encoder_is_blind_to_order(make_model):
    model, input_ids, order = make_model(position_embedding_type="none"), torch.arange(3, 14)[None], torch.randperm(11)
    assert_close(model(input_ids[:, order])[0], model(input_ids)[0][:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [kind for kind in POSITIONS if kind != "none"])
def test_with_positions_the_encoder_sees_order(make_model, positions):
    model, input_ids, order = (
        make_model(position_embedding_type=positions),
        torch.arange(3, 14)[None],
        torch.randperm(11),
    )
    assert not torch.allclose(model(input_ids[:, order])[0], model(input_ids)[0][:, order], atol=0.1)


@pytest.mark.parametrize(
    ("positions", "blind"),
    [("rotary", True), ("relative", True), ("none", True), ("learned", False), ("sinusoidal", False)],
)
def test_only_relative_positions_ignore_where_a_text_starts(make_model, positions, blind):
    model, input_ids = make_model(position_embedding_type=positions), torch.arange(3, 10)[None]
    shifted = model(input_ids, position_ids=torch.arange(5, 12)[None])[0]
    assert torch.allclose(shifted, model(input_ids)[0], atol=2e-5) is blind


def test_rotary_positions_use_the_theta_of_the_configuration(make_model):
    input_ids = torch.arange(3, 14)[None]
    assert not torch.allclose(make_model()(input_ids)[0], make_model(rope_theta=50)(input_ids)[0], atol=1e-2)


def test_sliding_layers_rotate_by_their_own_theta(make_model, batch):
    def angles(**fields):
        model, seen = make_model(**SLIDING, **fields), []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[2][0]))
        model(**batch)
        return seen

    plain, local = angles(), angles(local_rope_theta=50.0)
    assert_close(plain[0], plain[1])
    assert_close(local[0], angles(rope_theta=50.0)[1])
    assert_close(local[1], plain[1])
    assert not torch.allclose(local[0], local[1], atol=1e-2)


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_are_counted_from_their_offset(make_model, offset):
    model = make_model(position_embedding_type="learned", position_offset=offset, num_hidden_layers=0, final_norm=False)
    input_ids, table = torch.randint(1, 37, (1, 17)), model.embed_positions.embed_positions.weight
    assert table.shape == (17 + offset, 33)
    assert_close(model(input_ids)[0], model.embed_tokens(input_ids) + table[offset:])


def test_a_text_beyond_the_learned_positions_is_an_error(make_model):
    with pytest.raises(ValueError, match="19 tokens exceed the 17 learned positions"):
        make_model(position_embedding_type="learned")(torch.ones(1, 19, dtype=torch.long))


def test_a_packed_row_may_be_longer_than_the_learned_positions(make_model):
    model = make_model(position_embedding_type="learned")
    assert model(torch.ones(1, 19, dtype=torch.long), position_ids=torch.arange(19)[None] % 11)[0].shape == (1, 19, 33)


@pytest.mark.parametrize("positions", [kind for kind in POSITIONS if kind != "learned"])
def test_other_positions_have_no_limit(make_model, positions):
    assert make_model(position_embedding_type=positions)(torch.ones(1, 101, dtype=torch.long))[0].isfinite().all()


def test_segments_have_an_effect_only_if_configured(make_model, batch):
    segments = (torch.arange(7) > 2).long().expand(3, 7)
    for type_vocab_size, same in ((0, True), (2, False)):
        model = make_model(type_vocab_size=type_vocab_size)
        plain = model(**batch)[0]
        assert torch.equal(model(**batch, token_type_ids=torch.zeros_like(segments))[0], plain)
        assert torch.equal(model(**batch, token_type_ids=segments)[0], plain) is same


def test_scaled_embeddings_are_multiplied_by_the_root_of_size(make_model, batch):
    scaled, plain = (
        make_model(scale_embeddings=scale, position_embedding_type="sinusoidal") for scale in (True, False)
    )
    with torch.no_grad():
        plain.embed_tokens.weight.mul_(33**0.5)
    assert_close(scaled(**batch)[0], plain(**batch)[0])


def test_the_embeddings_are_normalised_when_the_slot_says_so(make_model, batch):
    model = make_model(embedding_norm=True, position_embedding_type="learned", norm_bias=False)
    embedded = model(**batch, output_hidden_states=True).hidden_states[0] / model.embed_norm.weight
    assert_close(embedded.mean(-1), torch.zeros(3, 7), atol=1e-5, rtol=0)
    assert_close(embedded.var(-1, unbiased=False), torch.ones(3, 7), atol=1e-3, rtol=0)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_output_is_normalised_in_either_placement(make_model, randomize, batch, placement):
    hidden = make_model(norm_placement=placement, norm_bias=False, initializer_range=0.3)
    norm = hidden.norm if placement == "pre" else hidden.layers[-1].post_mlp_norm
    last = hidden(**batch).last_hidden_state / norm.weight
    assert_close(last.var(-1, unbiased=False), torch.ones(3, 7), atol=1e-3, rtol=0)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_final_norm_is_a_slot(make_model, batch, placement):
    for asked, there in ((None, placement == "pre"), (True, True), (False, False)):
        model, seen = make_model(norm_placement=placement, final_norm=asked), {}
        model.layers[-1].register_forward_hook(lambda module, args, output, seen=seen: seen.update(last=output))
        out, last = model(**batch).last_hidden_state, seen["last"]
        assert ("norm.weight" in model.state_dict()) is there
        assert_close(out, F.layer_norm(last, (33,), model.norm.weight, model.norm.bias, 1e-6) if there else last)


def test_the_pooling_layer_is_a_slot_of_the_bare_model(make_model, batch):
    assert make_model()(**batch).pooler_output is None
    for pooling in ("cls", "mean"):
        model = make_model(pooling_layer=True, classifier_pooling=pooling)
        out = model(**batch)
        mask = batch["attention_mask"][..., None]
        hidden = out.last_hidden_state
        read = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        dense = model.pooler.dense
        assert_close(out.pooler_output, torch.tanh(read @ dense.weight.T + dense.bias))
    for head in HEADS:  # which have a pooler where they read it, whatever the slot says
        needed = head is DeceroEncoderForSequenceClassification
        for slot in (True, False):
            assert (make_model(head, pooling_layer=slot).model.pooler is not None) is needed


@pytest.mark.parametrize("bias", [True, False])
def test_the_transform_of_the_head_may_have_no_bias(make_model, batch, bias):
    model = make_model(DeceroEncoderForMaskedLM, lm_head_transform_bias=bias)
    dense, _, norm = model.lm_head.transform
    assert (dense.bias is not None) is bias
    hidden = F.linear(model.model(**batch).last_hidden_state, dense.weight, dense.bias)
    hidden = F.layer_norm(F.gelu(hidden), (33,), norm.weight, norm.bias, 1e-6)
    assert_close(model(**batch).logits, F.linear(hidden, model.lm_head.decoder.weight, model.lm_head.decoder.bias))


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_inputs_embeds_equal_the_input_ids_they_come_from(make_model, batch, model_class):
    model = make_model(model_class, scale_embeddings=True)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"]
    assert_close(model(inputs_embeds=embeds, attention_mask=mask)[0], model(**batch)[0], atol=0, rtol=0)


def test_ids_and_embeds_together_or_missing_are_an_error(make_model, batch):
    model = make_model()
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": torch.randn(3, 7, 33)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)
