"""The interface of transformers: saving, loading, outputs, initial weights, compilation."""

import pytest
import torch
from safetensors import safe_open
from tests.models.encoder.conftest import AUTO, BACKENDS, HEADS, LABELS
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
)

from decero.models import (
    DeceroEncoderConfig,
    DeceroEncoderForMaskedLM,
    DeceroEncoderModel,
)


@pytest.mark.parametrize(("auto", "model_class"), AUTO.items(), ids=lambda c: c.__name__)
def test_every_auto_class_finds_its_model(make_config, auto, model_class, tmp_path):
    config = make_config()
    assert type(auto.from_config(config)) is model_class
    config.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DeceroEncoderConfig
    model_class(config).save_pretrained(tmp_path)
    assert type(auto.from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
@pytest.mark.parametrize("tie", [True, False])
def test_saved_and_loaded_it_gives_the_same_outputs(make_model, batch, tmp_path, model_class, tie):
    model = make_model(
        model_class, tie_word_embeddings=tie, position_embedding_type="learned", type_vocab_size=2, embedding_norm=True
    )
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert torch.equal(loaded(**batch)[0], model(**batch)[0])


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_one_tensor_after_saving_untied_two(make_model, tmp_path, tie):
    model = make_model(DeceroEncoderForMaskedLM, tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.decoder.weight" in file.keys()) is not tie  # noqa: SIM118  (safe_open is no dict)
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118
    for one in (model, DeceroEncoderForMaskedLM.from_pretrained(tmp_path)):
        assert (one.lm_head.decoder.weight is one.model.embed_tokens.weight) is tie
        assert torch.equal(one.lm_head.decoder.weight, model.lm_head.decoder.weight)
        assert torch.equal(one.lm_head.decoder.weight, one.model.embed_tokens.weight) is tie


@pytest.mark.parametrize("size", [41, 31])
@pytest.mark.parametrize("tie", [True, False])
def test_resizing_the_vocabulary_keeps_tie_bias_and_scores(make_model, tmp_path, tie, size):
    model = make_model(DeceroEncoderForMaskedLM, tie_word_embeddings=tie)
    input_ids = torch.arange(1, 12)[None]
    before = model(input_ids).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == model.model.config.vocab_size == size
    assert model.model.embed_tokens.weight.shape == model.lm_head.decoder.weight.shape == (size, 33)
    assert model.lm_head.decoder.bias.shape == (size,)
    assert (model.lm_head.decoder.weight is model.model.embed_tokens.weight) is tie
    assert model.model.embed_tokens.padding_idx == 0
    out = model(input_ids, labels=input_ids)
    assert_close(out.logits[..., :31], before[..., :31])
    assert out.loss.isfinite()
    model.save_pretrained(tmp_path)
    assert torch.equal(DeceroEncoderForMaskedLM.from_pretrained(tmp_path)(input_ids).logits, out.logits)


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_the_input_embeddings_can_be_exchanged(make_model, model_class):
    model, other = make_model(model_class), torch.nn.Embedding(41, 33)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert getattr(model, "model", model).embed_tokens is other


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_the_checkpoint_lacks_is_initialised(make_config, batch, tmp_path, head):
    body = DeceroEncoderModel(make_config(initializer_range=0.5))
    body.save_pretrained(tmp_path)
    model, report = head.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"]
    assert all(not name.startswith("model.") or "pooler" in name for name in report["missing_keys"])
    assert all(not parameter.is_meta and parameter.isfinite().all() for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if name in report["missing_keys"] and parameter.dim() == 2 and "decoder" not in name:
            assert parameter.std().item() == pytest.approx(0.5, rel=0.4)  # 66 numbers at least
    assert torch.equal(model.model(**batch)[0], body(**batch)[0])
    assert model(**batch, **LABELS[head]).loss.isfinite()


def test_a_classifier_takes_its_body_from_a_masked_lm_checkpoint(make_model, batch, tmp_path):
    model = make_model(DeceroEncoderForMaskedLM)
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier(**batch).logits.shape == (3, 5)
    assert torch.equal(classifier.model(**batch)[0], model.model(**batch)[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_the_same_gradients(make_model, gradients, batch, head, reentrant):
    model, calls = make_model(head).train(), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(**batch, **LABELS[head]).loss.backward()
    expected = gradients(model)
    assert len(calls) == 1
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model(**batch, **LABELS[head]).loss.backward()
    assert len(calls) == 3
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_hidden_states_are_the_embeddings_and_one_a_layer(make_model, batch, placement):
    model = make_model(norm_placement=placement, num_hidden_layers=3)
    embeddings = {}
    model.layers[0].register_forward_pre_hook(lambda module, args: embeddings.update(first=args[0]))
    out = model(**batch, output_hidden_states=True)
    assert [state.shape for state in out.hidden_states] == [(3, 7, 33)] * 4
    assert torch.equal(out.hidden_states[0], embeddings["first"])
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


@pytest.mark.parametrize("head", HEADS)
def test_heads_pass_hidden_states_and_attentions_on(make_model, batch, head):
    out = make_model(head, "eager", num_hidden_layers=3)(**batch, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(3, 7, 33)] * 4
    assert [weights.shape for weights in out.attentions] == [(3, 3, 7, 7)] * 3


@pytest.mark.parametrize("head", HEADS)
def test_return_dict_false_gives_a_tuple(make_model, batch, head):
    model = make_model(head)
    out, row = model(**batch, **LABELS[head]), model(**batch, **LABELS[head], return_dict=False)
    assert isinstance(row, tuple)
    assert torch.equal(row[0], out.loss)
    assert torch.equal(row[1], out[1])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "relative"])  # two come from tables in fp32
def test_bfloat16_is_finite_and_near_fp32(make_config, batch, head, backend, positions):
    # The weights of a fresh model: at std 0.3 the comparison would measure chaos instead of precision.
    slots = {"position_embedding_type": positions, "norm_type": "rmsnorm", "gated_mlp": True}
    model = head(make_config(initializer_range=0.1, **slots)).eval()
    model.set_attn_implementation(backend)
    full = model(**batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(**batch)[0].float(), full, atol=0.05, rtol=0.05)
    half = model.to(torch.bfloat16)(**batch)[0]
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), full, atol=0.05, rtol=0.05)


def test_weights_start_with_the_configured_std_and_norms_at_one(make_config):
    config = make_config(
        initializer_range=0.07, vocab_size=997, hidden_size=99, intermediate_size=211, max_position_embeddings=101,
        position_embedding_type="learned", type_vocab_size=2, embedding_norm=True,
    )  # fmt: skip
    model = DeceroEncoderForMaskedLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or "transform.2" in name:
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        elif name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif parameter.numel() > 4000:
            assert parameter.std().item() == pytest.approx(0.07, rel=0.05), name
    assert model.model.embed_tokens.weight[0].eq(0).all()  # the padding token


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_is_trained(make_model, batch, gradients, head):
    slots = {"type_vocab_size": 2, "embedding_norm": True, "gated_mlp": True, "pooling_layer": True}
    for positions in ("learned", "relative"):
        model = make_model(head, position_embedding_type=positions, **slots)
        model(**batch, **LABELS[head]).loss.backward()
        assert gradients(model).keys() == dict(model.named_parameters()).keys()


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
def test_the_model_compiles_without_a_graph_break(make_model, batch, positions):
    model = make_model(DeceroEncoderForMaskedLM, position_embedding_type=positions)
    torch.compiler.reset()  # what other tests compiled counts against a limit
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)
