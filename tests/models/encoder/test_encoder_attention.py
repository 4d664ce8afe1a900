"""Attention masks, padding and packed rows, under both backends."""

import itertools

import pytest
import torch
from tests.models.conftest import in_pairs
from tests.models.encoder.conftest import BACKENDS, POSITIONS, SLIDING
from torch.testing import assert_close

from decero.models import (
    DeceroEncoderForMaskedLM,
    DeceroEncoderForSequenceClassification,
)

SLOTS = {
    "norm_type": ["layernorm", "rmsnorm"],
    "norm_placement": ["pre", "post"],
    "position_embedding_type": POSITIONS,
    "gated_mlp": [False, True],
    "num_key_value_heads": [None, 1],
}
COMBINATIONS = [dict(zip(SLOTS, values, strict=True)) for values in itertools.product(*SLOTS.values())]


def probe(hidden, keep=None):
    """A fixed random mix of the outputs, over the tokens to keep: a scalar whose gradient reaches every feature."""
    mix = hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    return mix.mean() if keep is None else mix[keep.bool()].mean()


@pytest.mark.parametrize("slots", in_pairs(COMBINATIONS))
def test_eager_equals_sdpa_for_every_combination_of_slots(make_model, gradients, batch, slots):
    # The slots that no kernel can see alternate, so that both of their values meet both backends.
    odd = COMBINATIONS.index(slots) % 3 == 1
    rest = {"embedding_norm": odd, "scale_embeddings": not odd, "type_vocab_size": 2 * odd, "attention_bias": not odd}
    rest |= SLIDING if COMBINATIONS.index(slots) % 5 < 2 else {"scale_attn_weights": odd}
    # In fp64, so that 1e-5 measures the backends and not the order in which this CPU sums (fp32: up to 0.6e-5 here).
    eager, sdpa = (make_model(backend=backend, **slots, **rest).double() for backend in BACKENDS)
    mask = batch["attention_mask"]
    hidden = [model(**batch).last_hidden_state for model in (eager, sdpa)]
    assert_close(hidden[0], hidden[1], atol=1e-5, rtol=1e-5)
    for one in hidden:
        probe(one, mask).backward()
    expected = gradients(eager)
    for name, gradient in gradients(sdpa).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_text_of_only_padding_stays_finite(make_model, batch, gradients, backend, positions, placement):
    slots = {"norm_placement": placement, "position_embedding_type": positions, "classifier_pooling": "mean"}
    model = make_model(DeceroEncoderForSequenceClassification, backend, **slots, **SLIDING)
    batch["attention_mask"][1] = 0
    others = [0, 2]
    with torch.no_grad():  # the kernels of inference are others than those of training
        assert model(**batch).logits.isfinite().all()
    out = model(**batch, labels=torch.tensor([1, 0, 1]))
    assert out.logits.isfinite().all()
    assert_close(out.logits[others], model(**{k: v[others] for k, v in batch.items()}).logits, atol=1e-5, rtol=1e-5)
    out.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_attention_weights_sum_to_one_over_real_tokens(make_model, batch):
    real = batch["attention_mask"][:, None, None, :].expand(3, 3, 7, 7)
    for weights in make_model(backend="eager")(**batch, output_attentions=True).attentions:
        assert_close((weights * real).sum(-1), torch.ones(3, 3, 7))
        assert (weights * (1 - real)).eq(0).all()


def test_the_backend_can_be_switched_on_a_living_model(make_model, batch):
    model = make_model(backend="sdpa")
    sdpa = model(**batch).last_hidden_state
    assert model(**batch, output_attentions=True).attentions == ()  # the fused kernels never write the weights down
    model.set_attn_implementation("eager")
    eager = model(**batch, output_attentions=True)
    assert eager.attentions[0].shape == (3, 3, 7, 7)
    assert_close(eager.last_hidden_state, sdpa, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_padded_batch_gives_what_each_text_gives_alone(make_model, batch, positions, backend):
    model = make_model(backend=backend, position_embedding_type=positions, **SLIDING)
    together = model(**batch).last_hidden_state
    for row, length in enumerate((7, 5, 2)):
        alone = model(batch["input_ids"][row : row + 1, :length]).last_hidden_state
        assert_close(together[row : row + 1, :length], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_left_padding_changes_nothing_with_given_positions(make_model, batch, positions):
    model = make_model(position_embedding_type=positions)
    right = model(**batch).last_hidden_state
    mask = batch["attention_mask"].flip(1)
    left_ids = torch.zeros(3, 7, dtype=torch.long)
    left_ids[mask.bool()] = batch["input_ids"][batch["attention_mask"].bool()]
    left = model(left_ids, mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).last_hidden_state
    assert_close(left[mask.bool()], right[batch["attention_mask"].bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_content_changes_no_real_token(make_model, batch, backend):
    model = make_model(backend=backend)
    real = batch["attention_mask"].bool()
    before = model(**batch).last_hidden_state
    after = model(batch["input_ids"].masked_fill(~real, 31), real.long()).last_hidden_state
    assert torch.equal(after[real], before[real])
    assert not torch.allclose(after[~real], before[~real])


@pytest.mark.parametrize("slots", [{}, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_packed_row_with_a_block_mask_equals_each_text_alone(make_model, positions, backend, additive, slots):
    model = make_model(backend=backend, position_embedding_type=positions, **slots).double()
    document = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]])
    input_ids = torch.randint(1, 37, (1, 11))
    block = (document[:, None] == document[None, :])[None, None]
    if additive:
        block = torch.zeros(block.shape).double().masked_fill(~block, torch.finfo(torch.float64).min)
    packed = model(input_ids, block, position_ids=position_ids).last_hidden_state
    for number in range(3):
        alone = model(input_ids[:, document == number]).last_hidden_state
        assert_close(packed[:, document == number], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(input_ids, position_ids=position_ids).last_hidden_state, packed, atol=1e-2)


def gradient_reaches(model, length=11):
    """(length, length) truth table: whether the output at one place depends on the input at another."""
    embeds = model.embed_tokens(torch.randint(1, 37, (1, length))).detach().requires_grad_()
    outputs = model(inputs_embeds=embeds).last_hidden_state[0]
    mix = torch.randn(33, generator=torch.Generator().manual_seed(3)).to(outputs)
    rows = [torch.autograd.grad(row @ mix, embeds, retain_graph=True)[0][0] for row in outputs]
    return torch.stack(rows).abs().sum(-1) > 0


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("layers", "window"), [(1, 1), (1, 5), (2, 2)])
def test_a_sliding_layer_sees_the_window_on_either_side(make_model, positions, backend, layers, window):
    slots = {"position_embedding_type": positions, "num_hidden_layers": layers, "sliding_window": window}
    model = make_model(backend=backend, **slots).double()
    distance = (torch.arange(11)[:, None] - torch.arange(11)[None, :]).abs()
    assert torch.equal(gradient_reaches(model), distance <= layers * window)


def test_each_layer_has_its_configured_kind(make_model):
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = make_model(backend="eager", num_hidden_layers=3, layer_types=kinds, sliding_window=2)
    weights = model(torch.randint(1, 37, (1, 7)), output_attentions=True).attentions
    distance = (torch.arange(7)[:, None] - torch.arange(7)[None, :]).abs()
    for kind, one in zip(kinds, weights, strict=True):
        seen = (distance <= 2) | torch.tensor(kind == "full_attention")
        assert torch.equal(one[0] > 0, seen.expand(3, 7, 7))


@pytest.mark.parametrize("fields", [{}, SLIDING], ids=["full", "sliding"])
def test_relative_positions_alone_steer_zero_queries(make_model, batch, fields):
    model = make_model(backend="eager", position_embedding_type="relative", **fields)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.q_proj.bias.zero_()
    ahead = torch.arange(7)[None, :] - torch.arange(7)[:, None]
    table = model.relative_attention_bias
    bias = torch.stack([table.weight[table.bucket(ahead), head] for head in range(3)])  # one table for all layers
    hidden = (batch["attention_mask"] == 0)[:, None, None, :]
    for kind, weights in zip(model.layer_types, model(**batch, output_attentions=True).attentions, strict=True):
        far = (ahead.abs() > 2) & torch.tensor(kind == "sliding_attention")
        by_hand = bias.expand(3, 3, 7, 7).masked_fill(hidden | far, -torch.inf).softmax(-1).nan_to_num(0.0)
        assert_close(weights, by_hand)


def test_relative_positions_need_a_backend_with_bias(make_model, batch):
    model = make_model(position_embedding_type="relative")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 does not support relative positions; use sdpa or eager"):
        model(**batch)


def test_extra_backend_arguments_reach_every_layer(make_model, batch):
    model, seen = make_model(DeceroEncoderForMaskedLM), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    lengths = torch.tensor([0, 7, 12, 14])  # where packed texts begin, for the kernels that take them
    model(**batch, cu_seq_lens_q=lengths)
    assert [kwargs["cu_seq_lens_q"] is lengths for kwargs in seen] == [True, True]
