"""The interface of transformers: saving, loading, outputs, initial weights, compilation."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from tests.models.decoder.conftest import AUTO, BACKENDS, HEADS, LABELS, SLIDING, VARIANTS
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
)

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDecoderForQuestionAnswering,
    DeceroDecoderModel,
)


def keys_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(("auto", "model_class"), AUTO.items(), ids=lambda c: c.__name__)
def test_every_auto_class_finds_its_model(make_config, auto, model_class, tmp_path):
    config = make_config(DeceroDecoderConfig)
    assert type(auto.from_config(config)) is model_class
    model_class(config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DeceroDecoderConfig
    assert type(auto.from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize(
    ("model_class", "variant"),
    [*((DeceroDecoderForCausalLM, v) for v in VARIANTS), *((c, "gpt2") for c in AUTO.values())],
)
def test_saved_and_loaded_it_gives_the_same_outputs(make_model, batch, tmp_path, model_class, variant):
    model = make_model(model_class, **VARIANTS[variant])
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict() | {"dtype": "float32"}
    assert torch.equal(loaded(**batch)[0], model(**batch)[0])


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_one_tensor_after_saving_untied_two(make_model, tmp_path, tie):
    model = make_model(tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    assert keys_of(tmp_path) == model.state_dict().keys() - ({"lm_head.weight"} if tie else set())
    for one in (model, DeceroDecoderForCausalLM.from_pretrained(tmp_path)):
        assert (one.lm_head.weight is one.model.embed_tokens.weight) is tie
        assert torch.equal(one.lm_head.weight, model.lm_head.weight)
        assert torch.equal(one.lm_head.weight, one.model.embed_tokens.weight) is tie


@pytest.mark.parametrize("size", [41, 31])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_resizing_the_vocabulary_keeps_tie_bias_and_scores(make_model, tmp_path, tie, bias, size):
    model = make_model(tie_word_embeddings=tie, lm_head_bias=bias)
    input_ids = torch.arange(1, 12)[None]
    before = model(input_ids).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == model.model.config.vocab_size == size
    assert model.model.embed_tokens.weight.shape == model.lm_head.weight.shape == (size, 33)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tie
    out = model(input_ids, labels=input_ids)
    assert out.logits.shape == (1, 11, size)
    assert_close(out.logits[..., :31], before[..., :31])
    assert out.loss.isfinite()
    model.save_pretrained(tmp_path)
    assert torch.equal(DeceroDecoderForCausalLM.from_pretrained(tmp_path)(input_ids).logits, out.logits)


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_the_input_embeddings_can_be_exchanged(make_model, model_class):
    model, other = make_model(model_class), torch.nn.Embedding(41, 33)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert getattr(model, "model", model).embed_tokens is other


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_the_checkpoint_lacks_is_initialised(make_config, randomize, batch, tmp_path, head, tie):
    slots = {"initializer_range": 0.5, "tie_word_embeddings": tie, "lm_head_bias": True}
    body = randomize(DeceroDecoderModel(make_config(DeceroDecoderConfig, **slots)), std=0.1).eval()
    body.save_pretrained(tmp_path)
    model, report = head.from_pretrained(tmp_path, output_loading_info=True, num_labels=29)
    tied = head is DeceroDecoderForCausalLM and tie
    names = {DeceroDecoderForCausalLM: "lm_head", DeceroDecoderForQuestionAnswering: "qa_outputs"}
    name = names.get(head, "score")
    layer = getattr(model, name)
    expected = {f"{name}.{part}" for part, _ in layer.named_parameters()} - ({"lm_head.weight"} if tied else set())
    assert report["missing_keys"] == expected
    assert layer.weight.std().item() == pytest.approx(0.1 if tied else 0.5, rel=0.2 if name == "qa_outputs" else 0.1)
    assert layer.bias is None or layer.bias.eq(0).all()
    assert torch.equal(model.model(**batch)[0], body(**batch)[0])


def test_a_classifier_takes_its_body_from_a_language_model(make_model, batch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier(**batch).logits.shape == (3, 5)
    assert torch.equal(classifier.model(**batch)[0], model.model(**batch)[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("variant", ["llama", "hybrid_buckets"])
def test_gradient_checkpointing_recomputes_the_same_gradients(make_model, gradients, batch, head, reentrant, variant):
    model, calls = make_model(head, **VARIANTS[variant]).train(), []
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


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_hidden_states_and_attentions_are_complete(make_model, batch, model_class):
    model = make_model(model_class, "eager", num_hidden_layers=3, num_key_value_heads=1)
    embeddings = {}
    body = getattr(model, "model", model)
    body.layers[0].register_forward_pre_hook(lambda module, args: embeddings.update(first=args[0]))
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(3, 7, 33)] * 4
    assert [weights.shape for weights in out.attentions] == [(3, 3, 7, 7)] * 3
    assert torch.equal(out.hidden_states[0], embeddings["first"])
    assert torch.equal(out.hidden_states[-1], body(**batch).last_hidden_state)
    assert not out.get("cross_attentions")
    plain = model(**batch)
    assert plain.hidden_states is None
    assert plain.attentions is None


@pytest.mark.parametrize("head", HEADS)
def test_return_dict_false_gives_a_tuple(make_model, batch, head):
    model = make_model(head)
    out, row = model(**batch, **LABELS[head]), model(**batch, **LABELS[head], return_dict=False)
    assert isinstance(row, tuple)
    assert torch.equal(row[0], out.loss)
    assert torch.equal(row[1], out["logits" if "logits" in out else "start_logits"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_finite_and_near_fp32(make_config, left, backend, variant):
    # The weights of a fresh model: at std 0.3 the comparison would measure chaos instead of precision.
    model = DeceroDecoderForCausalLM(make_config(DeceroDecoderConfig, initializer_range=0.1, **VARIANTS[variant]))
    model.eval().set_attn_implementation(backend)
    text, full = left["attention_mask"].bool(), model(**left).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(**left).logits[text].float(), full[text], atol=0.05, rtol=0.05)
    half = model.to(torch.bfloat16)(**left).logits
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert_close(half[text].float(), full[text], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("scaled", [True, False])
def test_weights_start_with_the_configured_std_and_norms_at_one(make_config, scaled):
    config = make_config(
        DeceroDecoderConfig, initializer_range=0.07, vocab_size=997, hidden_size=99, head_dim=34, intermediate_size=211,
        position_embedding_type="relative", relative_attention_num_buckets=1009, relative_attention_max_distance=2003,
        embedding_norm=True, scale_attn_weights=scaled, tie_word_embeddings=False, lm_head_bias=True,
    )  # fmt: skip
    model = DeceroDecoderForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        elif name.endswith("bias"):
            assert parameter.eq(0).all(), name
        else:
            std = 0.07 if scaled or "q_proj" not in name else 0.07 * 34**-0.5  # T5 has its 1/sqrt(head size) here
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
    assert model.model.embed_tokens.weight[0].eq(0).all()  # the padding token


def test_the_configuration_survives_dict_and_file(make_config, tmp_path):
    config = make_config(DeceroDecoderConfig, **VARIANTS["hybrid"], lm_head_bias=True, classifier_dropout=0.25)
    assert DeceroDecoderConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DeceroDecoderConfig
    assert (loaded.layer_types, loaded.sliding_window) == (SLIDING["layer_types"], 3)
    assert (loaded.local_rope_theta, loaded.lm_head_bias, loaded.classifier_dropout) == (50, True, 0.25)


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, ["full_attention"] * 2),
        ({"sliding_window": 3}, ["sliding_attention"] * 2),
        (SLIDING, ["sliding_attention", "full_attention"]),
    ],
)
def test_a_window_alone_makes_every_layer_slide(make_config, fields, kinds):
    assert make_config(DeceroDecoderConfig, **fields).layer_types == kinds


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gpt2", "llama", "buckets", "hybrid"])
def test_the_model_compiles_without_a_graph_break(make_model, batch, variant):
    model = make_model(**VARIANTS[variant])
    torch.compiler.reset()  # what other tests compiled counts against a limit
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(**batch, use_cache=False).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)


def test_a_window_of_one_token_is_refused():
    with pytest.raises(
        StrictDataclassError, match="sliding_window 1 holds no token but the last one; set it to 2 or more"
    ):
        DeceroDecoderConfig(sliding_window=1)
