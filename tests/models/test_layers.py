"""Norms, feed-forward layers, and the residual layer that joins them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from decero.models import DeceroDecoderConfig, DeceroEncoderDecoderConfig
from decero.models.layers import MLP, DecoderLayer, EncoderLayer, GatedMLP, RMSNorm, build_norm


def test_rmsnorm_is_torch_rms_norm(randomize):
    norm = randomize(RMSNorm(33, eps=1e-3))
    with torch.no_grad():
        norm.weight.add_(0.5)
    x = torch.randn(2, 5, 33)
    assert_close(norm(x), F.rms_norm(x, (33,), norm.weight, eps=1e-3))


def test_rmsnorm_computes_its_statistics_in_fp32():
    x = torch.full((1, 1, 33), 300.0, dtype=torch.float16)  # 300^2 overflows fp16
    assert_close(RMSNorm(33).half()(x), torch.ones(1, 1, 33, dtype=torch.float16))


@pytest.mark.parametrize("norm_type", ["layernorm", "rmsnorm"])
def test_a_norm_looks_at_one_token_and_never_at_the_batch(make_config, randomize, norm_type):
    norm = randomize(build_norm(make_config(norm_type=norm_type)))
    x = torch.randn(3, 5, 33)
    other = x.clone()
    other[1:] = other[1:] * 11 + 3
    other[0, 1:] = 0.0
    assert_close(norm(x)[0, 0], norm(other)[0, 0], atol=0, rtol=0)


def test_layernorm_is_mean_and_variance_over_the_features(make_config):
    x = torch.randn(3, 5, 33) * 2 + 1
    by_hand = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 0.1).sqrt()
    assert_close(build_norm(make_config(layer_norm_eps=0.1))(x), by_hand)


@pytest.mark.parametrize(
    ("norm_type", "norm_bias", "count"), [("layernorm", True, 2), ("layernorm", False, 1), ("rmsnorm", True, 1)]
)
def test_the_norm_slot_builds_what_the_configuration_says(make_config, norm_type, norm_bias, count):
    norm = build_norm(make_config(norm_type=norm_type, norm_bias=norm_bias))
    assert isinstance(norm, RMSNorm if norm_type == "rmsnorm" else nn.LayerNorm)
    assert len(list(norm.parameters())) == count


def test_the_mlp_is_equation_two_of_the_paper(make_config, randomize):
    mlp = randomize(MLP(make_config(hidden_act="relu")))
    x = torch.randn(2, 5, 33)
    up, down = mlp.up_proj, mlp.down_proj
    assert_close(mlp(x), (x @ up.weight.T + up.bias).clamp(min=0) @ down.weight.T + down.bias)


def test_the_gated_mlp_with_silu_is_swiglu(make_config, randomize):
    mlp = randomize(GatedMLP(make_config(hidden_act="silu", mlp_bias=False)))
    x = torch.randn(2, 5, 33)
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    z = x @ gate.T
    assert_close(mlp(x), (z * z.sigmoid() * (x @ up.T)) @ down.T)


def test_a_gate_held_open_leaves_the_plain_linear_mlp(make_config, randomize):
    config = make_config(hidden_act="sigmoid")
    gated, plain = randomize(GatedMLP(config)), MLP(config)
    nn.init.zeros_(gated.gate_proj.weight)
    nn.init.constant_(gated.gate_proj.bias, 50.0)  # sigmoid(50) = 1
    plain.load_state_dict(gated.state_dict(), strict=False)
    plain.act = nn.Identity()
    x = torch.randn(2, 5, 33)
    assert_close(gated(x), plain(x))


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_the_mlp_is_the_same_for_each_position(make_config, randomize, kind):
    mlp, x, order = randomize(kind(make_config())), torch.randn(2, 5, 33), torch.tensor([3, 1, 4, 0, 2])
    assert_close(mlp(x)[:, order], mlp(x[:, order]))
    assert_close(mlp(x)[:, 2], mlp(x[:, 2]))


@pytest.mark.parametrize("bias", [True, False])
def test_biases_are_slots_of_their_own(make_config, bias):
    layer = EncoderLayer(make_config(gated_mlp=True, mlp_bias=bias, attention_bias=not bias), layer_idx=0)
    names = {name for name, _ in layer.named_parameters()}
    assert all((f"mlp.{x}_proj.bias" in names) is bias for x in ("gate", "up", "down"))
    assert all((f"self_attn.{x}_proj.bias" in names) is not bias for x in "qkvo")


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_layer_is_two_residuals_with_the_chosen_norm_placement(make_config, randomize, placement):
    config = make_config(norm_placement=placement)
    config._attn_implementation = "eager"
    layer, x = randomize(EncoderLayer(config, layer_idx=0)), torch.randn(2, 5, 33)
    if placement == "pre":  # x + f(norm(x))
        middle = x + layer.self_attn(layer.pre_attn_norm(x))[0]
        by_hand = middle + layer.mlp(layer.pre_mlp_norm(middle))
    else:  # norm(x + f(x)): Vaswani et al. 2017, section 3.1
        middle = layer.post_attn_norm(x + layer.self_attn(x)[0])
        by_hand = layer.post_mlp_norm(middle + layer.mlp(middle))
    assert_close(layer(x), by_hand)
    assert sum(isinstance(module, nn.LayerNorm) for module in layer.modules()) == 2


def test_dropout_acts_on_sublayer_outputs_not_on_the_residual(make_config, randomize):
    config = make_config(norm_placement="pre", hidden_dropout_prob=1.0)
    config._attn_implementation = "eager"
    layer, x = randomize(EncoderLayer(config, layer_idx=0)).train(), torch.randn(2, 5, 33)
    assert torch.equal(layer(x), x)
    assert not torch.allclose(layer.eval()(x), x)


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_activation_dropout_acts_between_the_layers_of_the_mlp(make_config, randomize, kind):
    mlp, x = randomize(kind(make_config(activation_dropout=0.25))).train(), torch.randn(2, 5, 33)
    seen = []
    mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    mlp(x)
    mlp.eval()(x)
    dropped, whole = seen
    assert 0.15 < dropped.eq(0).float().mean() < 0.35
    kept = dropped != 0
    assert_close(dropped[kept], whole[kept] / 0.75)
    all_dropped = randomize(kind(make_config(activation_dropout=1.0))).train()
    assert_close(all_dropped(x), all_dropped.down_proj.bias.expand(2, 5, 33))


@pytest.mark.parametrize(
    ("placement", "embedding_norm", "first_has_none"),
    [("pre", True, True), ("pre", False, False), ("post", True, True), ("post", False, True)],
)
def test_normalised_embeddings_are_not_normalised_again(make_config, placement, embedding_norm, first_has_none):
    config = make_config(norm_placement=placement, embedding_norm=embedding_norm)
    first, second = (EncoderLayer(config, layer_idx=i) for i in (0, 1))
    assert isinstance(first.pre_attn_norm, nn.Identity) is first_has_none
    assert isinstance(second.pre_attn_norm, nn.Identity) is (placement == "post")
    assert isinstance(first.pre_mlp_norm, nn.Identity) is (placement == "post")
    assert isinstance(first.post_attn_norm, nn.Identity) is (placement == "pre")


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_layer_beside_an_encoder_is_three_residuals(make_config, randomize, placement):
    config = make_config(DeceroEncoderDecoderConfig, norm_placement=placement)
    config._attn_implementation = "eager"
    layer, x, memory = randomize(DecoderLayer(config, layer_idx=0)), torch.randn(2, 5, 33), torch.randn(2, 7, 33)
    mask = torch.ones(5, 5).tril().bool()[None, None]
    cross = {"memory_BMD": memory}
    if placement == "pre":
        own = x + layer.self_attn(layer.pre_attn_norm(x), mask)[0]
        crossed = own + layer.cross_attn(layer.pre_cross_norm(own), **cross)[0]
        by_hand = crossed + layer.mlp(layer.pre_mlp_norm(crossed))
    else:
        own = layer.post_attn_norm(x + layer.self_attn(x, mask)[0])
        crossed = layer.post_cross_norm(own + layer.cross_attn(own, **cross)[0])
        by_hand = layer.post_mlp_norm(crossed + layer.mlp(crossed))
    assert_close(layer(x, mask, **cross), by_hand)
    assert sum(isinstance(module, nn.LayerNorm) for module in layer.modules()) == 3


def test_a_decoder_alone_has_nothing_to_cross(make_config):
    layer = DecoderLayer(make_config(DeceroDecoderConfig), layer_idx=0)
    assert not [name for name, _ in layer.named_parameters() if "cross" in name]


def test_dropout_falls_on_all_three_sublayers_of_a_decoder(make_config, randomize):
    config = make_config(DeceroEncoderDecoderConfig, norm_placement="pre", hidden_dropout_prob=1.0)
    config._attn_implementation = "eager"
    layer, x = randomize(DecoderLayer(config, layer_idx=0)).train(), torch.randn(2, 5, 33)
    assert torch.equal(layer(x, memory_BMD=torch.randn(2, 7, 33)), x)
