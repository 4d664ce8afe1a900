"""What a token sees: masks, windows, padding and packed rows, under both backends."""

import itertools

import pytest
import torch
from tests.models.conftest import in_pairs
from tests.models.decoder.conftest import BACKENDS, POSITIONS, SLIDING, VARIANTS
from torch.testing import assert_close

from decero.models import (
    DeceroDecoderModel,
)


def probe(hidden):
    """A fixed random mix of the outputs: a scalar whose gradient reaches every feature."""
    return (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).to(hidden)).mean()


@pytest.mark.parametrize("padding", ["no", "left", "right"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_token_never_changes_an_earlier_logit(make_model, variant, backend, padding):
    model, place = make_model(backend=backend, **VARIANTS[variant]).double(), torch.arange(11)
    text = torch.randint(1, 37, (11,))
    changed = torch.where(place[None, :] > place[:, None], text % 36 + 1, text)  # row t: all that comes after t
    mask = {"no": None, "left": (place > 2).expand(12, 11), "right": (place < 8).expand(12, 11)}[padding]
    before, *after = model(torch.cat((text[None], changed)), attention_mask=mask).logits
    for t in range(2 if padding == "left" else 0, 7 if padding == "right" else 10):
        assert_close(after[t][: t + 1], before[: t + 1])
        assert not torch.allclose(after[t][t + 1], before[t + 1], atol=1e-2)


def gradient_reaches(model, length=11):
    """(length, length) truth table: whether the output at one place depends on the input at another."""
    embeds = model.embed_tokens(torch.randint(1, 37, (1, length))).detach().requires_grad_()
    outputs = model(inputs_embeds=embeds).last_hidden_state[0]
    rows = [torch.autograd.grad(probe(row), embeds, retain_graph=True)[0][0] for row in outputs]
    return torch.stack(rows).abs().sum(-1) > 0


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("layers", "window"), [(1, 2), (1, 5), (2, 3)])
def test_a_sliding_layer_sees_exactly_its_window(make_model, positions, backend, layers, window):
    slots = {"position_embedding_type": positions, "num_hidden_layers": layers, "sliding_window": window}
    model = make_model(DeceroDecoderModel, backend, **slots).double()
    behind = torch.arange(11)[:, None] - torch.arange(11)[None, :]
    assert torch.equal(gradient_reaches(model), (behind >= 0) & (behind <= layers * (window - 1)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_full_layer_sees_all_that_came_before(make_model, positions, backend):
    model = make_model(DeceroDecoderModel, backend, position_embedding_type=positions, num_hidden_layers=1).double()
    assert torch.equal(gradient_reaches(model), torch.ones(11, 11).tril().bool())


def test_each_layer_has_its_configured_kind(make_model):
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = make_model(backend="eager", num_hidden_layers=3, layer_types=kinds, sliding_window=2)
    weights = model(torch.randint(1, 37, (1, 7)), output_attentions=True).attentions
    behind = torch.arange(7)[:, None] - torch.arange(7)[None, :]
    for kind, one in zip(kinds, weights, strict=True):
        seen = (behind >= 0) & ((behind < 2) | torch.tensor(kind == "full_attention"))
        assert torch.equal(one[0] > 0, seen.expand(3, 7, 7))
        assert_close(one.sum(-1), torch.ones(1, 3, 7))


def test_sliding_layers_rotate_by_their_own_theta(make_model, batch):
    def output(**fields):
        return make_model(DeceroDecoderModel, **{**SLIDING, **fields})(**batch).last_hidden_state

    def angles(model):
        seen = []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[2][0]))
        model(**batch)
        return seen

    plain, local, wide = ({}, {"local_rope_theta": 50.0}, {"rope_theta": 50.0})
    first, second = angles(make_model(DeceroDecoderModel, **SLIDING, **local))
    assert_close(first, angles(make_model(DeceroDecoderModel, **SLIDING, **wide))[1])
    assert_close(second, angles(make_model(DeceroDecoderModel, **SLIDING, **plain))[1])
    assert not torch.allclose(first, second, atol=1e-2)
    assert not torch.allclose(output(**local), output(**plain), atol=1e-2)
    full = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
    assert torch.equal(output(**full, **local), output(**full))


SLOTS = {
    "norm_placement": ["pre", "post"],
    "position_embedding_type": POSITIONS,
    "num_key_value_heads": [None, 1],
    "sliding_window": [None, 3],
}
COMBINATIONS = [dict(zip(SLOTS, values, strict=True)) for values in itertools.product(*SLOTS.values())]


@pytest.mark.parametrize("slots", in_pairs(COMBINATIONS))
def test_eager_equals_sdpa_for_every_combination_of_slots(make_model, gradients, left, slots):
    odd = COMBINATIONS.index(slots) % 3 == 1  # the slots that no kernel can see alternate
    rest = {"embedding_norm": odd, "gated_mlp": not odd, "attention_bias": not odd, "lm_head_bias": odd}
    rest |= {"norm_type": "rmsnorm" if odd else "layernorm", "scale_attn_weights": odd, "final_norm": odd}
    if slots["sliding_window"]:
        rest["layer_types"] = SLIDING["layer_types"]
    eager, sdpa = (make_model(backend=backend, **slots, **rest).double() for backend in BACKENDS)
    text = left["attention_mask"].bool()
    logits = [model(**left).logits[text] for model in (eager, sdpa)]
    assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
    for one in logits:
        probe(one).backward()
    expected = gradients(eager)
    assert expected.keys() == dict(eager.named_parameters()).keys()
    for name, gradient in gradients(sdpa).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_batch_gives_what_each_text_gives_alone(make_model, batch, left, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    for padded in (batch, left):
        together, text = model(**padded).logits, padded["attention_mask"].bool()
        for row in range(3):
            alone = model(padded["input_ids"][row : row + 1, text[row]]).logits[0]
            assert_close(together[row, text[row]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["llama", "buckets", "blind", "hybrid", "hybrid_buckets"])
def test_relative_positions_need_no_ids_with_left_padding(make_model, prompt, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    together, text = model(**prompt).logits, prompt["attention_mask"].bool()
    for row in range(3):
        alone = model(prompt["input_ids"][row : row + 1, text[row]]).logits[0]
        assert_close(together[row, text[row]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_positions_that_see_nothing_stay_finite(make_model, gradients, left, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant])
    left["attention_mask"][1] = 0  # and one text is nothing but padding
    with torch.no_grad():  # the kernels of inference are others than those of training
        assert model(**left).logits.isfinite().all()
    logits = model(**left).logits
    assert logits.isfinite().all()
    probe(logits).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_texts_do_not_see_each_other(make_model, variant, backend, use_cache):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    lengths, input_ids = (3, 6, 2), torch.randint(1, 37, (1, 11))
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(input_ids, position_ids=position_ids, use_cache=use_cache).logits.split(lengths, dim=1)
    for one, text in zip(packed, input_ids.split(lengths, dim=1), strict=True):
        assert_close(one, model(text).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slots", [{}, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_ready_made_mask_tells_packed_texts_apart(make_model, positions, backend, additive, slots):
    model = make_model(backend=backend, position_embedding_type=positions, **slots).double()
    input_ids = torch.randint(1, 37, (11,))
    text = torch.tensor([0] * 4 + [1] * 7)
    mask = (text[:, None] == text[None, :]) & torch.ones(11, 11).tril().bool()
    if additive:
        mask = torch.zeros(11, 11).double().masked_fill(~mask, torch.finfo(torch.float64).min)
    packed = model(input_ids[None], mask[None, None], position_ids=torch.tensor([[*range(4), *range(7)]])).logits[0]
    for part in (slice(0, 4), slice(4, 11)):
        assert_close(packed[part], model(input_ids[None, part]).logits[0], atol=1e-5, rtol=1e-5)


def test_relative_positions_need_a_backend_with_bias(make_model, batch):
    model = make_model(position_embedding_type="relative")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 does not support relative positions; use sdpa or eager"):
        model(**batch)
