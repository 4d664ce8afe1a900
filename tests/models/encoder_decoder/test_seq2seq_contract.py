"""The interface of transformers: saving, loading, outputs, initial weights, compilation."""

import pytest
import torch
from tests.models.encoder_decoder.conftest import AUTO, BACKENDS, HEAD, LABELS, VARIANTS, calls_of
from torch.testing import assert_close
from transformers import AutoConfig

from decero.models import (
    DeceroEncoderDecoderConfig,
)


@pytest.mark.parametrize(("auto", "model_class"), AUTO.items(), ids=lambda c: c.__name__)
def test_every_auto_class_finds_its_model(make_config, auto, model_class, tmp_path):
    config = make_config(DeceroEncoderDecoderConfig)
    assert type(auto.from_config(config)) is model_class
    model_class(config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DeceroEncoderDecoderConfig
    assert type(auto.from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_gives_the_same_outputs(make_model, pairs, tmp_path, variant):
    model = make_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    loaded, report = HEAD.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict() | {"dtype": "float32"}
    assert torch.equal(loaded(**pairs).logits, model(**pairs).logits)


@pytest.mark.parametrize(("asked", "decoder"), [(None, 2), (1, 1), (5, 5)])
def test_the_decoder_may_have_layers_of_its_own_number(make_model, asked, decoder):
    model = make_model(decoder_layers=asked)
    assert (len(model.model.encoder.layers), len(model.model.decoder.layers)) == (2, decoder)
    assert model.config.decoder_layers == decoder


def test_the_encoder_looks_both_ways_the_decoder_only_back(make_model, pairs):
    model = make_model(backend="eager", decoder_layers=3)
    out = model(**pairs, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in out.encoder_attentions] == [(3, 3, 7, 7)] * 2
    assert [weights.shape for weights in out.decoder_attentions] == [(3, 3, 5, 5)] * 3
    assert [weights.shape for weights in out.cross_attentions] == [(3, 3, 5, 7)] * 3
    real = pairs["attention_mask"].bool()
    for weights in (*out.encoder_attentions, *out.cross_attentions):
        assert torch.equal(weights > 0, real[:, None, None, :].expand(weights.shape))
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for weights in out.decoder_attentions:
        assert torch.equal(weights > 0, torch.ones(5, 5).tril().bool().expand(weights.shape))
    assert [state.shape for state in out.encoder_hidden_states] == [(3, 7, 33)] * 3
    assert [state.shape for state in out.decoder_hidden_states] == [(3, 5, 33)] * 4
    assert torch.equal(out.encoder_hidden_states[-1], out.encoder_last_hidden_state)
    assert_close(out.decoder_hidden_states[-1] @ model.lm_head.weight.T, out.logits)


def test_return_dict_false_gives_a_tuple(make_model, batch):
    model = make_model()
    out, row = model(**batch, labels=LABELS), model(**batch, labels=LABELS, return_dict=False)
    assert isinstance(row, tuple)
    assert torch.equal(row[0], out.loss)
    assert torch.equal(row[1], out.logits)
    body = model.model(**batch, decoder_input_ids=LABELS.clamp(min=0), return_dict=False)
    assert isinstance(body, tuple)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("variant", ["vaswani2017", "t5", "modern"])
def test_gradient_checkpointing_recomputes_the_same_gradients(make_model, gradients, batch, reentrant, variant):
    model = make_model(**VARIANTS[variant]).train()
    crossed, encoded = calls_of(model, "cross_attn.k_proj"), []
    model.model.encoder.layers[0].mlp.register_forward_pre_hook(lambda *_: encoded.append(1))
    model(**batch, labels=LABELS).loss.backward()
    expected = gradients(model)
    assert (len(encoded), set(crossed)) == (1, {1})
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model(**batch, labels=LABELS).loss.backward()
    assert (len(encoded), set(crossed)) == (3, {3})
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_finite_and_near_fp32(make_config, pairs, backend, variant):
    # The weights of a fresh model: at std 0.3 the comparison would measure chaos instead of precision.
    model = HEAD(make_config(DeceroEncoderDecoderConfig, initializer_range=0.1, **VARIANTS[variant])).eval()
    model.set_attn_implementation(backend)
    full = model(**pairs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(**pairs).logits.float(), full, atol=0.05, rtol=0.05)
    half = model.to(torch.bfloat16)(**pairs).logits
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("scaled", [True, False])
def test_weights_start_with_the_configured_std_and_norms_at_one(make_config, scaled):
    config = make_config(
        DeceroEncoderDecoderConfig, initializer_range=0.07, vocab_size=997, hidden_size=99, head_dim=34,
        intermediate_size=211, scale_attn_weights=scaled, tie_word_embeddings=False, lm_head_bias=True,
    )  # fmt: skip
    model = HEAD(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        elif name.endswith("bias"):
            assert parameter.eq(0).all(), name
        else:
            std = 0.07 if scaled or "q_proj" not in name else 0.07 * 34**-0.5  # T5 has its 1/sqrt(head size) here
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


@pytest.mark.parametrize("tie", [True, False])
def test_token_embeddings_start_from_a_std_of_their_own(make_config, tie):
    own = {"embedding_initializer_range": 1, "initializer_range": 0.07, "vocab_size": 997, "hidden_size": 99}
    model = HEAD(make_config(DeceroEncoderDecoderConfig, **own, head_dim=34, tie_word_embeddings=tie))
    table = model.get_input_embeddings().weight
    assert table.std().item() == pytest.approx(1, rel=0.02)
    assert table[model.config.pad_token_id].eq(0).all()
    assert model.lm_head.weight.std().item() == pytest.approx(1 if tie else 0.07, rel=0.02)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed_tokens" not in name:
            assert parameter.std().item() == pytest.approx(0.07, rel=0.05), name


def test_the_configuration_survives_dict_and_file(make_config, tmp_path):
    config = make_config(DeceroEncoderDecoderConfig, **VARIANTS["marian"], scale_lm_head=True)
    assert DeceroEncoderDecoderConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DeceroEncoderDecoderConfig
    assert loaded.is_encoder_decoder
    assert (loaded.num_hidden_layers, loaded.decoder_layers, loaded.decoder_start_token_id) == (2, 1, 29)
    assert (loaded.lm_head_bias, loaded.scale_lm_head, loaded.position_embedding_type) == (
        True,
        True,
        "sinusoidal_halves",
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["vaswani2017", "t5", "modern"])
def test_the_model_compiles_without_a_graph_break(make_model, batch, variant):
    model = make_model(**VARIANTS[variant])
    torch.compiler.reset()  # what other tests compiled counts against a limit
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(**batch, labels=LABELS).logits, model(**batch, labels=LABELS).logits, atol=1e-4, rtol=1e-4)
