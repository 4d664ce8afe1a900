"""Attention: equation 1 of Vaswani et al. 2017, its masks, and the module around it."""

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, EncoderDecoderCache

from decero.models import DeceroDecoderConfig, DeceroEncoderDecoderConfig
from decero.models.attention import (
    CrossAttention,
    MultiHeadAttention,
    SelfAttention,
    eager_attention_forward,
    rotate,
    scaled_dot_product_attention,
    softmax_or_zero,
)
from decero.models.embeddings import rotary_positions

BACKENDS = ["eager", "sdpa"]


def lesson():
    """Four queries, keys and values of size 3, small enough to check with a pencil."""
    q_LK = torch.tensor([0.0, 1.0, 0.2, 0.3])[:, None].expand(4, 3)
    k_LK = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None].expand(4, 3)
    v_LK = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    mix_LK = torch.tensor(
        [[0.2500, 0.5000, 0.5000], [0.1892, 0.5432, 0.5857], [0.2372, 0.5087, 0.5173], [0.2309, 0.5130, 0.5260]]
    )
    return q_LK[None, None], k_LK[None, None], v_LK[None, None], mix_LK[None, None]


def test_the_lesson_by_pencil_comes_out_to_four_decimals():
    q, k, v, mix = lesson()
    ours, weights = scaled_dot_product_attention(q, k, v)
    assert_close(ours, mix, atol=5e-5, rtol=0)
    assert_close(weights.sum(-1), torch.ones(1, 1, 4))


@pytest.mark.parametrize("scale", [1.0, 1 / 3])
def test_the_lesson_needs_the_scale_of_one_over_the_root(scale):
    q, k, v, mix = lesson()
    assert not torch.allclose(scaled_dot_product_attention(q, k, v, scale=scale)[0], mix, atol=5e-4)


def test_attention_equals_torch_with_mask_and_custom_scale():
    q, k, v = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 11, 7), torch.randn(2, 3, 11, 7)
    bias = torch.randn(2, 1, 5, 11)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    assert_close(scaled_dot_product_attention(q, k, v, bias, scale=1.0)[0], theirs)


def test_softmax_or_zero_is_softmax_where_anything_is_visible():
    scores = torch.randn(2, 3, 5, 7)
    scores[..., 4] = float("-inf")
    assert_close(softmax_or_zero(scores), scores.softmax(-1))


def test_softmax_or_zero_gives_a_hidden_row_zero_and_no_gradient():
    scores = torch.randn(5, 7)
    scores[2] = float("-inf")
    scores.requires_grad_()
    weights = softmax_or_zero(scores)
    assert weights[2].eq(0).all()
    (weights * torch.randn(5, 7)).sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[2].eq(0).all()
    assert scores.grad[[0, 1, 3, 4]].abs().sum(-1).gt(0).all()


def test_softmax_or_zero_has_the_gradient_of_finite_differences():
    scores = torch.randn(3, 5, dtype=torch.float64)
    scores[1] = float("-inf")
    visible = torch.tensor([0, 2])

    def of_visible(x):
        return softmax_or_zero(scores.index_copy(0, visible, x))

    assert torch.autograd.gradcheck(of_visible, scores[visible].clone().requires_grad_())


def test_dropout_falls_on_the_weights_and_keeps_their_mean():
    q, k = torch.randn(1, 1, 499, 7), torch.randn(1, 1, 11, 7)
    mix, weights = scaled_dot_product_attention(q, k, torch.ones(1, 1, 11, 7), dropout=0.25)
    assert 0.2 < weights.eq(0).float().mean() < 0.3
    assert mix.mean() == pytest.approx(1.0, abs=0.05)


@pytest.fixture
def attention(make_config, randomize):
    def make(backend="eager", **fields):
        config = make_config(**fields)
        config._attn_implementation = backend
        return randomize(MultiHeadAttention(config, layer_idx=0))

    return make


def hidden_row_mask(kind, length=5):
    """Every position sees every other, but position 2 of the second text sees nothing. Shape (2, 1, length, length)."""
    visible = torch.ones(2, 1, length, length, dtype=torch.bool)
    visible[1, :, 2] = False
    if kind == "bool":
        return visible
    return torch.zeros(visible.shape).masked_fill(
        ~visible, torch.finfo(torch.float32).min if kind == "min" else -torch.inf
    )


@pytest.mark.parametrize(("backend", "kind"), [("eager", "bool"), ("eager", "min"), ("eager", "inf"), ("sdpa", "bool")])
def test_a_fully_masked_row_gives_zeros_not_nan(attention, backend, kind):
    module = attention(backend)
    hidden = torch.randn(2, 5, 33, requires_grad=True)
    out, _ = module(hidden, hidden_row_mask(kind))
    assert_close(out[1, 2], module.o_proj.bias, atol=0, rtol=0)  # a mix of nothing is zero; the bias remains
    assert not torch.allclose(out[1, 1], module.o_proj.bias)
    (out * torch.randn_like(out)).sum().backward()
    assert hidden.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_the_three_ways_to_write_a_mask_agree(attention):
    module, hidden = attention(), torch.randn(2, 5, 33)
    by_bool, by_min, by_inf = (module(hidden, hidden_row_mask(kind))[0] for kind in ("bool", "min", "inf"))
    assert_close(by_bool, by_min, atol=0, rtol=0)
    assert_close(by_bool, by_inf, atol=0, rtol=0)


def test_a_hidden_position_weighs_exactly_nothing(attention):
    visible = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    visible[0, ..., 3] = False
    _, weights = attention()(torch.randn(2, 5, 33), visible.expand(2, 1, 5, 5))
    assert weights[0, :, :, 3].eq(0).all()
    assert weights[1, :, :, 3].gt(0).all()
    assert_close(weights.sum(-1), torch.ones(2, 3, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_heads_equal_full_heads_with_repeated_weights(attention, backend):
    grouped = attention(backend, num_attention_heads=6, num_key_value_heads=2)
    full = attention(backend, num_attention_heads=6)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        per_head = state[name].unflatten(0, (2, 14))
        state[name] = per_head.repeat_interleave(3, dim=0).flatten(0, 1)  # heads 0-2 share group 0, 3-5 group 1
    full.load_state_dict(state)
    hidden = torch.randn(2, 5, 33)
    assert_close(grouped(hidden)[0], full(hidden)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_head_dim_may_differ_from_the_share_of_the_model(attention, backend):
    module = attention(backend, head_dim=22)
    assert module.q_proj.weight.shape == (66, 33)
    assert module.o_proj.weight.shape == (33, 66)
    assert module.scaling == pytest.approx(22**-0.5)
    hidden = torch.randn(2, 5, 33)
    q, k, v = (getattr(module, f"{x}_proj")(hidden).view(2, 5, 3, 22).transpose(1, 2) for x in "qkv")
    mix, _ = scaled_dot_product_attention(q, k, v, scale=22**-0.5)
    assert_close(module(hidden)[0], module.o_proj(mix.transpose(1, 2).reshape(2, 5, 66)))


def test_eager_returns_length_before_heads():
    class Module:
        num_key_value_groups = 1

    q, k, v = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 11, 7), torch.randn(2, 3, 11, 7)
    mix, weights = eager_attention_forward(Module, q, k, v)
    assert mix.shape == (2, 5, 3, 7)
    assert weights.shape == (2, 3, 5, 11)


def test_attention_dropout_acts_in_training_only(attention):
    module, hidden = attention(attention_probs_dropout_prob=0.5), torch.randn(2, 5, 33)
    assert not torch.equal(module.train()(hidden)[0], module(hidden)[0])
    assert torch.equal(module.eval()(hidden)[0], module(hidden)[0])


def turned(vector_K, position):
    cos, sin = rotary_positions(torch.tensor([[position]]), vector_K.shape[-1])
    return rotate(vector_K.view(1, 1, 1, -1), cos, sin).flatten()


@pytest.mark.parametrize("distance", [0, 1, 3])
def test_rotary_scores_depend_on_the_distance_only(distance):
    q, k = torch.randn(14), torch.randn(14)
    scores = torch.stack([turned(q, start + distance) @ turned(k, start) for start in (0, 2, 97)])
    assert_close(scores, scores[:1].expand(3), atol=1e-5, rtol=1e-5)


def test_rotary_scores_tell_distances_and_directions_apart():
    q, k = torch.randn(14), torch.randn(14)
    scores = torch.stack([turned(q, 5) @ turned(k, n) for n in range(11)])
    assert len({round(s, 3) for s in scores.tolist()}) == 11


def test_rotary_turns_pairs_and_keeps_their_length():
    x = torch.randn(14)
    y = turned(x, 3)
    assert_close(y.view(2, 7).norm(dim=0), x.view(2, 7).norm(dim=0))
    for i in range(7):  # Su et al. 2021, eq. 15, feature i paired with feature i + K/2
        angle = torch.tensor(3 * 10000.0 ** (-2 * i / 14))
        assert_close(y[i], x[i] * angle.cos() - x[i + 7] * angle.sin())
        assert_close(y[i + 7], x[i] * angle.sin() + x[i + 7] * angle.cos())
    assert_close(turned(x, 0), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unscaled_attention_leaves_the_scores_as_they_are(attention, backend):
    unscaled, scaled = attention(backend, scale_attn_weights=False), attention(backend)
    hidden = torch.randn(2, 5, 33)
    assert not torch.allclose(unscaled(hidden)[0], scaled(hidden)[0], atol=1e-2)
    with torch.no_grad():  # queries smaller by 1/sqrt(head size) undo it: that is how T5 starts
        unscaled.q_proj.weight.mul_(14**-0.5)
        unscaled.q_proj.bias.mul_(14**-0.5)
    assert_close(unscaled(hidden)[0], scaled(hidden)[0])


@pytest.fixture
def cross(make_config, randomize):
    def make(backend="eager", **fields):
        config = make_config(DeceroEncoderDecoderConfig, **fields)
        config._attn_implementation = backend
        return randomize(CrossAttention(config, layer_idx=1))

    return make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [None, 1])
def test_cross_attention_has_target_queries_and_source_keys(cross, backend, groups):
    module, hidden, memory = cross(backend, num_key_value_heads=groups), torch.randn(2, 5, 33), torch.randn(2, 7, 33)
    q = module.q_proj(hidden).view(2, 5, 3, 14).transpose(1, 2)
    k, v = (getattr(module, f"{x}_proj")(memory).view(2, 7, -1, 14).transpose(1, 2) for x in "kv")
    mix, _ = scaled_dot_product_attention(q, k.expand(2, 3, 7, 14), v.expand(2, 3, 7, 14))
    by_hand = module.o_proj(mix.transpose(1, 2).reshape(2, 5, 42))
    assert_close(module(hidden, memory_BMD=memory)[0], by_hand)


@pytest.mark.parametrize("backend", BACKENDS)
def test_source_keys_and_values_are_computed_once_and_cached(cross, backend):
    module, memory, calls = cross(backend), torch.randn(2, 7, 33), []
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for projection in (module.k_proj, module.v_proj):
        projection.register_forward_hook(lambda *_: calls.append(1))
    for step in range(3):
        hidden = torch.randn(2, 1, 33)
        remembered, _ = module(hidden, memory_BMD=memory, past_key_values=cache)
        assert len(calls) == 2 + 2 * step
        assert_close(remembered, module(hidden, memory_BMD=memory)[0])
    assert cache.get_seq_length() == 0  # the target's half is untouched
    other, _ = module(hidden, memory_BMD=torch.zeros_like(memory), past_key_values=cache)
    assert torch.equal(other, remembered)


def test_only_sliding_layers_have_a_window(make_config):
    kinds = ["full_attention", "sliding_attention"]
    config = make_config(DeceroDecoderConfig, layer_types=kinds, sliding_window=5)
    assert [SelfAttention(config, i, is_causal=True).sliding_window for i in (0, 1)] == [None, 5]
    assert SelfAttention(config, 1).sliding_window == 6, "in both directions transformers counts the token itself, too"
    assert SelfAttention(make_config(DeceroEncoderDecoderConfig), 0).sliding_window is None


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
def test_positions_go_to_queries_and_keys_not_to_values(make_config, randomize, crossed):
    attention = randomize(MultiHeadAttention(make_config(hidden_size=42, attn_implementation="eager"), layer_idx=0))
    x, m, p, q = torch.randn(2, 5, 42), torch.randn(2, 7, 42), torch.randn(2, 5, 42), torch.randn(1, 7, 42)
    theirs = torch.nn.MultiheadAttention(42, 3, batch_first=True)
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(attention.o_proj.state_dict())
    memory, positions = (m, q) if crossed else (x, p)
    expected, _ = theirs(x + p, memory + positions, memory)
    given = {"memory_BMD": m, "memory_positions_BMD": q} if crossed else {}
    assert_close(attention(x, positions_BLD=p, **given)[0], expected)
