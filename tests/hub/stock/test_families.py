"""The tables are right: weights converted in either direction give the same outputs and gradients.

Tests tiny models with large weights, built from configurations (no download), in train and eval mode, with padding and
both attention backends, to 3e-5. The tables are also complete: no option or tensor is dropped silently.
"""

import pytest
import torch
from tests.hub.stock.conftest import redraw
from torch.testing import assert_close

from decero.errors import UserError
from decero.hub.families import FAMILIES
from decero.hub.stock import from_stock, to_stock


def scores(output, text):
    """All outputs of a head at real tokens, in one vector."""
    names = (
        "logits",
        "start_logits",
        "end_logits",
        "last_hidden_state",
        "pooler_output",
        "reconstruction",
        "pred_boxes",
    )
    found = [output[name] for name in names if output.get(name) is not None]
    assert found
    return torch.cat([(o[text] if o.shape[:2] == text.shape else o).flatten() for o in found])


def backward(model, inputs, text):
    """Outputs, and the gradients by name of a fixed weighted sum of them."""
    out = scores(model(**inputs), text)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# By whose weights are drawn: both modes and both backends each, all four pairs together.
BACKENDS = {"stock": ["eager", "sdpa"], "ours": ["sdpa", "eager"]}


# What begins as ours and becomes stock is the same pair, as the test after this one shows: so it is slow.
@pytest.mark.parametrize("start", ["stock", pytest.param("ours", marks=pytest.mark.slow)])
def test_both_give_the_same_outputs_and_gradients(case, start, batch):
    if start == "stock":
        stock = case.stock()
        ours = from_stock(stock)
    else:
        ours = case.ours()
        stock = to_stock(ours, case.family.name)
    backbone = {"backbone_config": "eager"} if case.family.name == "detr" else {}  # ResNet has no attention
    for model in (stock, ours) if backbone else ():
        model.requires_grad_(True)  # the stock class freezes its backbone
    inputs, text = batch(case)
    for mode, backend in zip(["train", "eval"], BACKENDS[start], strict=True):
        for model in (stock, ours):
            model.zero_grad()
            model.train(mode == "train")
            model.set_attn_implementation({"": backend, **backbone} if backbone else backend)
        where = f"in {mode} mode with {backend} attention"
        expected, stock_gradients = backward(stock, inputs, text)
        actual, our_gradients = backward(ours, inputs, text)
        assert expected.abs().max() > 0.1, where  # the outputs are not all zero
        assert_close(actual, expected, atol=3e-5, rtol=0, msg=lambda said, where=where: f"{where}: {said}")

        translated = case.family.translate(stock_gradients, our_gradients, case.head, to_stock=False)
        assert translated.keys() == our_gradients.keys(), where
        largest = max(gradient.abs().max() for gradient in translated.values())
        for name, gradient in translated.items():
            apart = (our_gradients[name] - gradient).abs().max() / largest
            assert apart <= 3e-5, f"{where}: {name}: gradients {apart:.1e} of the largest apart"
        # Nearly every parameter has a gradient; a softmax ignores a constant, such as a bias on all keys.
        assert sum(g.abs().max() > 1e-5 * largest for g in translated.values()) > 0.8 * len(translated), where


@pytest.mark.long
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=["fp32", "bf16"]
)
def test_there_and_back_keeps_every_byte_and_every_option(case, dtype):
    stock = case.stock().to(dtype)
    again = to_stock(from_stock(stock), case.family.name)
    same(again, stock)
    assert without_dtype(again) == without_dtype(stock)

    ours = case.ours().to(dtype)
    again = from_stock(to_stock(ours, case.family.name))
    same(again, ours)
    assert without_dtype(again) == without_dtype(ours)


def without_dtype(model):
    fields = model.config.to_dict()
    if isinstance(backbone := fields.get("backbone_config"), dict):
        fields["backbone_config"] = {name: value for name, value in backbone.items() if name != "dtype"}
    return {name: value for name, value in fields.items() if name != "dtype"}


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def test_every_line_of_a_table_is_some_tensor(all_cases):
    for family in FAMILIES:
        cases = [case for case in all_cases if case.family.name == family.name]
        names = {name for case in cases for name in case.stock().state_dict()}
        for table in (family.tensors, *(head.tensors for head in family.heads.values())):
            for line in filter(str.strip, table.splitlines()):
                stock = line.split()[1].replace("{i}", "1").replace("{any}", "")
                assert any(
                    (stock.endswith(".") and stock in name) or name.removesuffix(".weight").endswith(stock)
                    for name in names
                ), line


@pytest.mark.parametrize(
    "variant",
    [
        "bert",
        "roberta",
        "distilbert",
        "electra",
        "modernbert",
        "eurobert",
        "gpt2",
        "llama",
        "stablelm",
        "t5",
        "t5 encoder",
        "marian",
        "vit",
        "deit",
    ],
)
def test_every_option_on_a_line_survives_there_and_back(variant, find_case):
    case = find_case(variant, "Model")
    family = case.family
    wider = (
        {"hidden_size": 84} if family.name in ("modernbert", "stablelm") else {}
    )  # with more heads, the head size must stay even
    before = case.config(**wider)
    lines = [line.split() for line in family.fields.splitlines() if line.strip()]
    for name in dict.fromkeys(line[0] for line in lines):
        options = [line[-1] for line in lines if line[0] == name]
        options += [line[-1] for line in lines for other in lines if line[0] == other[0] and other[-1] in options]
        changes = {option: another(option, getattr(before, option)) for option in options}
        if name == "patch_size":
            changes["encoder_stride"] = changes["patch_size"]  # follows it
        stock = case.config(**{**wider, **changes})
        ours = family.our_config(stock, "Model")
        assert getattr(ours, name) == getattr(stock, options[0]) != getattr(before, options[0]), name
        assert family.stock_config(ours).to_dict() == stock.to_dict()


def another(option, value):
    """Return another valid value."""
    if isinstance(value, bool):
        return not value
    if "token_id" in option:
        return 9
    if isinstance(value, int):
        return 3 if option == "num_key_value_heads" else 2 * value
    if isinstance(value, list):
        return value[1:] + value[:1]
    return "gelu_new" if isinstance(value, str) else 0.5


@pytest.mark.parametrize(
    ("variant", "head", "option", "value"),
    [
        ("bert", "ForMaskedLM", "is_decoder", True),
        ("bert", "Model", "add_cross_attention", True),
        ("roberta", "ForMaskedLM", "hidden_act", "relu"),  # its head always has GELU
        ("roberta", "Model", "is_decoder", True),
        ("distilbert", "Model", "sinusoidal_pos_embds", True),
        ("modernbert", "ForMaskedLM", "decoder_bias", False),
        ("modernbert", "Model", "local_attention", 7),
        ("modernbert", "ForMaskedLM", "classifier_activation", "relu"),
        ("gpt2", "ForCausalLM", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "ForCausalLM", "reorder_and_upcast_attn", True),
        ("gpt2", "Model", "add_cross_attention", True),
        ("t5", "ForConditionalGeneration", "is_decoder", True),
        ("marian", "ForConditionalGeneration", "share_encoder_decoder_embeddings", False),
        ("marian", "Model", "tie_word_embeddings", False),
        ("marian", "Model", "decoder_attention_heads", 11),
        ("stablelm", "ForCausalLM", "use_qkv_bias", True),
        ("stablelm", "ForCausalLM", "qk_layernorm", True),
        ("stablelm", "Model", "use_parallel_residual", True),
        (
            "stablelm",
            "Model",
            "rope_parameters",
            {"rope_type": "default", "rope_theta": 5e2, "partial_rotary_factor": 0.5},
        ),
        ("marian", "Model", "decoder_vocab_size", 41),
        ("vit", "ForImageClassification", "qkv_bias", False),
        ("vit", "Model", "pooler_act", "relu"),
        ("deit", "Model", "pooler_output_size", 7),
        ("detr", "ForObjectDetection", "position_embedding_type", "learned"),
        ("detr", "ForObjectDetection", "decoder_ffn_dim", 43),
    ],
)
def test_a_stock_option_without_counterpart_is_refused_by_name(variant, head, option, value, find_case):
    case = find_case(variant, head)
    with pytest.raises(UserError, match=f"{case.family.name} option {option}=.* has no counterpart in decero"):
        case.family.check_import(case.config(**{option: value}), head)


@pytest.mark.parametrize(
    ("variant", "head", "field", "value", "needs"),
    [
        ("bert", "ForMaskedLM", "norm_placement", "pre", "'post'"),
        ("bert", "ForMaskedLM", "norm_type", "rmsnorm", "'layernorm'"),
        ("bert", "ForMaskedLM", "gated_mlp", True, "False"),
        ("bert", "ForMaskedLM", "position_embedding_type", "rotary", "'learned'"),
        ("bert", "ForMaskedLM", "position_offset", 2, "0"),
        ("bert", "ForMaskedLM", "type_vocab_size", 0, "1"),
        ("bert", "ForMaskedLM", "lm_head_transform", False, "True"),
        ("bert", "ForSequenceClassification", "classifier_pooling", "mean", "'cls'"),
        ("bert", "Model", "attention_bias", False, "True"),
        ("bert", "Model", "embedding_norm", False, "True"),
        ("bert", "Model", "head_dim", 7, "11"),
        ("roberta", "Model", "position_offset", 2, "3"),
        ("roberta", "ForMaskedLM", "hidden_act", "relu", "'gelu'"),
        ("distilbert", "Model", "layer_norm_eps", 1e-5, "1e-12"),
        ("modernbert", "Model", "norm_type", "rmsnorm", "'layernorm'"),
        ("modernbert", "Model", "type_vocab_size", 2, "0"),
        ("modernbert", "ForTokenClassification", "classifier_head", "pooler", "'prediction'"),
        ("modernbert", "ForSequenceClassification", "classifier_pooling", "late", "'mean'"),
        ("gpt2", "Model", "num_key_value_heads", 1, "3"),
        ("gpt2", "Model", "gated_mlp", True, "False"),
        ("gpt2", "ForCausalLM", "lm_head_bias", True, "False"),
        ("llama", "Model", "norm_placement", "post", "'pre'"),
        ("stablelm", "Model", "norm_type", "rmsnorm", "'layernorm'"),
        ("stablelm", "ForCausalLM", "attention_bias", True, "False"),
        ("stablelm", "Model", "head_dim", 10, "14"),
        ("eurobert", "ForMaskedLM", "lm_head_transform", True, "False"),
        ("eurobert", "ForMaskedLM", "lm_head_bias", True, "False"),
        ("eurobert", "ForSequenceClassification", "pooler_act", "tanh", "'gelu'"),
        ("eurobert", "Model", "embedding_norm", True, "False"),
        ("eurobert", "Model", "pooling_layer", True, "False"),
        ("bert", "ForSequenceClassification", "pooler_act", "gelu", "'tanh'"),
        ("bert", "ForMaskedLM", "lm_head_bias", False, "True"),
        ("llama", "Model", "gated_mlp", False, "True"),
        ("llama", "Model", "scale_embeddings", True, "False"),
        ("t5", "ForConditionalGeneration", "decoder_intermediate_size", 43, "41"),
        ("t5 1.1", "ForConditionalGeneration", "hidden_act", "gelu", "'gelu_new'"),
        ("t5", "Model", "position_embedding_type", "rotary", "'relative'"),
        ("t5", "ForConditionalGeneration", "scale_embeddings", True, "False"),  # its tied head has that scale already
        ("t5", "Model", "num_key_value_heads", 1, "3"),
        ("marian", "ForConditionalGeneration", "position_embedding_type", "sinusoidal", "'sinusoidal_halves'"),
        ("marian", "ForConditionalGeneration", "lm_head_bias", False, "True"),
        ("marian", "ForConditionalGeneration", "tie_word_embeddings", False, "True"),
        ("marian", "Model", "layer_norm_eps", 1e-6, "1e-05"),
        ("vit", "ForImageClassification", "pooling", "mean", "'cls'"),
        ("vit", "ForImageClassification", "stem", "conv", "'patch'"),
        ("vit", "Model", "position_embedding_type", "sinusoidal", "'learned'"),
        ("vit", "Model", "distillation_token", True, "False"),
        ("deit", "ForImageClassification", "distillation_head", True, "False"),
        ("deit distilled", "ForImageClassification", "distillation_head", False, "True"),
        ("deit", "Model", "num_key_value_heads", 1, "3"),
        ("detr", "ForObjectDetection", "queries", "anchors", "'learned'"),
        ("detr", "ForObjectDetection", "stem", "conv", "'backbone'"),
        ("detr", "ForObjectDetection", "norm_placement", "pre", "'post'"),
    ],
)
def test_a_field_that_a_family_cannot_express_is_refused_by_name(variant, head, field, value, needs, find_case):
    case = find_case(variant, head)
    config = case.family.our_config(case.config(), head)
    setattr(config, field, value)
    with pytest.raises(UserError) as refusal:
        case.family.check_export(config, head)
    said = str(refusal.value)
    assert said == f"{field}={value!r} has no counterpart in {case.family.name}, which has {needs}"


@pytest.mark.parametrize(
    ("variant", "head", "field", "value"),
    [
        ("bert", "ForMaskedLM", "rope_theta", 5.0),  # it has no rotary positions
        ("bert", "ForMaskedLM", "classifier_pooling", "mean"),
        ("bert", "ForTokenClassification", "lm_head_transform", False),
        ("bert", "ForTokenClassification", "tie_word_embeddings", False),
        ("llama", "ForCausalLM", "norm_bias", False),  # RMSNorm has no bias
        ("llama", "Model", "sliding_window", 3),  # no layer has a sliding window
        ("t5", "ForConditionalGeneration", "max_position_embeddings", 3),
        ("vit", "ForImageClassification", "decode_head", "mla"),
    ],
)
def test_a_field_without_effect_is_not_refused(variant, head, field, value, find_case):
    case = find_case(variant, head)
    config = case.family.our_config(case.config(), head)
    setattr(config, field, value)
    assert case.family.check_export(config, head) == []


def test_a_training_only_option_is_reported_but_not_refused(find_case):
    case = find_case("gpt2", "Model")
    assert case.family.check_import(case.config(embd_pdrop=0.5), "Model") == ["embd_pdrop=0.5 (only acts in training)"]
    config = case.family.our_config(case.config(), "Model")
    config.activation_dropout = 0.25
    assert case.family.check_export(config, "Model") == ["activation_dropout=0.25 (only acts in training)"]


def test_a_bias_that_the_stock_class_trains_not_is_reported(find_case):
    case = find_case("marian", "ForConditionalGeneration")
    config = case.family.our_config(case.config(), case.head)
    assert (config.train_lm_head_bias, case.family.check_export(config, case.head)) == (False, [])
    config.train_lm_head_bias = True
    assert case.family.check_export(config, case.head) == ["train_lm_head_bias=True (only acts in training)"]


def test_norms_without_biases_leave_with_biases_of_zero(find_case, batch):
    """As modern_decoder_tiny does. The model has fewer tensors, but the same outputs and gradients."""
    case = find_case("stablelm tied", "ForCausalLM")
    config = case.family.our_config(case.config(), case.head)
    config.norm_bias = False
    ours = redraw(case.family.our_class(case.head)(config))
    stock = to_stock(ours, "stablelm")
    zero = [name for name, tensor in stock.state_dict().items() if not tensor.any()]
    assert sorted(zero) == sorted(name for name in stock.state_dict() if name.endswith("norm.bias"))
    inputs, text = batch(case)
    (expected, theirs), (actual, mine) = backward(stock, inputs, text), backward(ours, inputs, text)
    assert_close(actual, expected, atol=3e-5, rtol=0)
    shared = {name: gradient for name, gradient in theirs.items() if name not in zero}
    assert_close(case.family.translate(shared, mine, case.head, to_stock=False), mine, atol=1e-4, rtol=3e-5)


def test_a_scaling_that_we_do_not_compute_is_refused_by_name(find_case):
    rope = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0] * 5, "long_factor": [2.0] * 5}
    case = find_case("llama", "ForCausalLM")
    with pytest.raises(UserError, match="unknown rope_type longrope"):
        case.family.check_import(case.config(rope_parameters=rope), "ForCausalLM")


def test_a_head_missing_in_a_family_is_refused(find_case):
    case = find_case("distilbert", "Model")
    config = case.family.our_config(case.config(), "Model")
    with pytest.raises(UserError, match="distilbert has no DeceroEncoderForSequenceClassification"):
        case.family.check_export(config, "ForSequenceClassification")


def test_a_bare_bert_without_its_pooler_stays_without(find_case):
    case = find_case("bert", "Model")
    stock = case.family.stock_class("Model")(case.config(), add_pooling_layer=False)
    ours = from_stock(stock)
    assert ours.config.pooling_layer is False
    assert to_stock(ours, "bert").pooler is None


def test_two_matrices_under_a_tying_configuration_stay_two(find_case):
    stock = find_case("t5 1.1", "ForConditionalGeneration").stock()
    assert stock.config.tie_word_embeddings  # T5Config always ties them
    ours = from_stock(stock)
    assert not ours.config.tie_word_embeddings
    assert torch.equal(ours.lm_head.weight, stock.lm_head.weight)
    assert not torch.equal(ours.lm_head.weight, ours.get_input_embeddings().weight)
