"""The encoder and its heads: masks, positions, and the interface of transformers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderModel,
    DeceroEncoderConfig,
    DeceroEncoderDecoderConfig,
    DeceroEncoderForMaskedLM,
    DeceroEncoderForQuestionAnswering,
    DeceroEncoderForSequenceClassification,
    DeceroEncoderForTokenClassification,
    DeceroEncoderModel,
)

BACKENDS = ["eager", "sdpa"]
POSITIONS = ["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]
AUTO = {
    AutoModel: DeceroEncoderModel,
    AutoModelForMaskedLM: DeceroEncoderForMaskedLM,
    AutoModelForSequenceClassification: DeceroEncoderForSequenceClassification,
    AutoModelForTokenClassification: DeceroEncoderForTokenClassification,
    AutoModelForQuestionAnswering: DeceroEncoderForQuestionAnswering,
}
HEADS = [head for auto, head in AUTO.items() if auto is not AutoModel]
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 2}
SLOTS = {
    "norm_type": ["layernorm", "rmsnorm"],
    "norm_placement": ["pre", "post"],
    "position_embedding_type": POSITIONS,
    "gated_mlp": [False, True],
    "num_key_value_heads": [None, 1],
}
COMBINATIONS = [dict(zip(SLOTS, values, strict=True)) for values in itertools.product(*SLOTS.values())]
LABELS = {
    DeceroEncoderForMaskedLM: {"labels": torch.full((3, 7), -100).index_fill(1, torch.tensor([1, 4]), 5)},
    DeceroEncoderForSequenceClassification: {"labels": torch.tensor([1, 0, 1])},
    DeceroEncoderForTokenClassification: {"labels": torch.ones(3, 7, dtype=torch.long)},
    DeceroEncoderForQuestionAnswering: {
        "start_positions": torch.tensor([2, 0, 1]), "end_positions": torch.tensor([6, 3, 1])
    },
}  # fmt: skip


@pytest.fixture
def make_model(make_config, randomize):
    """A model of prime sizes with large weights, in eval mode."""

    def make(model_class=DeceroEncoderModel, backend="sdpa", **fields):
        model = randomize(model_class(make_config(**fields))).eval()
        model.set_attn_implementation(backend)
        return model

    return make


def probe(hidden, keep=None):
    """A fixed random mix of the outputs, over the tokens to keep: a scalar whose gradient reaches every feature."""
    mix = hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    return mix.mean() if keep is None else mix[keep.bool()].mean()


# --- attention masks and backends


@pytest.mark.parametrize("slots", COMBINATIONS, ids=lambda slots: "-".join(str(value) for value in slots.values()))
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


# --- positions, segments, embeddings


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


# --- heads and losses


def test_the_masked_lm_loss_is_cross_entropy_of_scored_tokens(make_model, batch):
    model = make_model(DeceroEncoderForMaskedLM)
    labels = LABELS[DeceroEncoderForMaskedLM]["labels"]
    out = model(**batch, labels=labels)
    by_hand = -out.logits.log_softmax(-1)[labels != -100][:, 5].mean()
    assert_close(out.loss, by_hand)
    assert model(**batch).loss is None


@pytest.mark.parametrize("head", [DeceroEncoderForMaskedLM, DeceroEncoderForTokenClassification])
def test_the_loss_is_divided_by_a_given_num_items_in_batch(make_model, batch, head):
    # Gradient accumulation: the sum over this batch over the number of asked tokens in all of them.
    model, labels = make_model(head), LABELS[head]["labels"]
    asked = labels.ne(-100).sum()
    mean = model(**batch, labels=labels).loss
    assert_close(model(**batch, labels=labels, num_items_in_batch=torch.tensor(97)).loss, mean * asked / 97)
    assert_close(model(**batch, labels=labels, num_items_in_batch=97).loss, mean * asked / 97)


def test_micro_batch_losses_with_the_global_count_add_up(make_model, gradients, batch):
    model, labels = make_model(DeceroEncoderForMaskedLM), LABELS[DeceroEncoderForMaskedLM]["labels"].clone()
    labels[0, 2] = 3  # an uneven split: three asked tokens against four
    model(**batch, labels=labels).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3)):
        part = {name: value[rows] for name, value in batch.items()}
        model(**part, labels=labels[rows], num_items_in_batch=labels.ne(-100).sum()).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, whole[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "by_hand"),
    [
        ("single_label_classification", 5, torch.tensor([3, 0, 4]), F.cross_entropy),
        (
            "multi_label_classification",
            5,
            torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]),
            lambda z, y: -(y * z.sigmoid().log() + (1 - y) * (-z).sigmoid().log()).mean(),
        ),
        ("regression", 1, torch.tensor([0.5, -2.0, 1.0]), lambda z, y: (z[:, 0] - y).square().mean()),
        ("regression", 5, torch.randn(3, 5), lambda z, y: (z - y).square().mean()),
    ],
)
def test_each_problem_type_has_its_loss(make_model, batch, problem_type, num_labels, labels, by_hand):
    for stated in (problem_type, None) if not (problem_type == "regression" and num_labels > 1) else (problem_type,):
        model = make_model(DeceroEncoderForSequenceClassification, num_labels=num_labels, problem_type=stated)
        out = model(**batch, labels=labels)
        assert out.logits.shape == (3, num_labels)
        assert_close(out.loss, by_hand(out.logits, labels))
        assert model.config.problem_type == problem_type  # guessed from the labels when it was not stated


def test_the_token_label_loss_is_cross_entropy_of_scored_tokens(make_model, batch):
    labels = torch.tensor([1, -100, 0, 4, -100, 2, 3]).repeat(3, 1)
    out = make_model(DeceroEncoderForTokenClassification, num_labels=5)(**batch, labels=labels)
    by_hand = -torch.stack([out.logits.log_softmax(-1)[:, n, y] for n, y in enumerate(labels[0]) if y >= 0]).mean()
    assert_close(out.loss, by_hand)


def test_the_question_answering_loss_skips_answers_out_of_text(make_model, batch):
    starts, ends = torch.tensor([2, 0, 99]), torch.tensor([6, 3, 99])
    out = make_model(DeceroEncoderForQuestionAnswering)(**batch, start_positions=starts, end_positions=ends)
    by_hand = F.cross_entropy(out.start_logits[:2], starts[:2]) + F.cross_entropy(out.end_logits[:2], ends[:2])
    assert_close(out.loss, by_hand / 2)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_classifier_ignores_padding(make_model, batch, pooling):
    model = make_model(DeceroEncoderForSequenceClassification, classifier_pooling=pooling)
    together = model(**batch).logits
    for row, length in enumerate((7, 5, 2)):
        assert_close(together[row], model(batch["input_ids"][row : row + 1, :length]).logits[0], atol=1e-5, rtol=1e-5)


def test_cls_pools_the_first_token_and_mean_pools_all(make_model, batch):
    for pooling in ("cls", "mean"):
        model = make_model(DeceroEncoderForSequenceClassification, classifier_pooling=pooling)
        hidden = model.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        pooler = model.model.pooler.dense
        by_hand = torch.tanh(pooled @ pooler.weight.T + pooler.bias)
        assert_close(model(**batch).logits, by_hand @ model.classifier.weight.T + model.classifier.bias)


def test_classifier_dropout_defaults_to_that_of_the_model(make_config):
    for head in (DeceroEncoderForSequenceClassification, DeceroEncoderForTokenClassification):
        assert head(make_config(hidden_dropout_prob=0.3)).dropout.p == 0.3
        assert head(make_config(hidden_dropout_prob=0.3, classifier_dropout=0.0)).dropout.p == 0.0


@pytest.mark.parametrize("head", [DeceroEncoderForSequenceClassification, DeceroEncoderForTokenClassification])
def test_classifier_dropout_acts_on_the_classifier_input(make_model, batch, head):
    model = make_model(head, classifier_dropout=1.0)
    assert torch.equal(*torch.broadcast_tensors(model.train()(**batch).logits, model.classifier.bias))
    assert not torch.allclose(model.eval()(**batch).logits, model.classifier.bias)


def test_dropout_acts_on_the_embeddings_in_training_only(make_model, batch):
    model = make_model(hidden_dropout_prob=0.5)
    assert model.train()(**batch, output_hidden_states=True).hidden_states[0].eq(0).float().mean() > 0.4
    assert torch.equal(model.eval()(**batch)[0], model(**batch)[0])


# --- the contract of transformers


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


def test_the_configuration_survives_dict_and_file(make_config, tmp_path):
    config = make_config(num_key_value_heads=1, classifier_dropout=0.25, rope_theta=500.0, num_labels=5)
    assert DeceroEncoderConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.num_key_value_heads, loaded.classifier_dropout, loaded.rope_theta) == (1, 0.25, 500.0)
    assert (loaded.head_dim, loaded.num_labels, loaded.hidden_size) == (14, 5, 33)


def test_unset_sizes_follow_from_the_others(make_config):
    config = make_config(hidden_size=42, head_dim=None)
    assert (config.head_dim, config.num_key_value_heads) == (14, 3)


RELATIVE = {"position_embedding_type": "relative"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 32, "head_dim": None}, "hidden_size 32 is not a multiple of num_attention_heads 3"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 2},
            "num_attention_heads 3 is not a multiple of num_key_value",
        ),
        ({"head_dim": 11}, "head_dim 11 must be even"),
        ({"position_offset": 2}, "position_offset works only with learned positions, not with rotary"),
        ({"layer_types": ["sliding_attention"] * 2}, "has sliding_attention, but sliding_window is None"),
        ({"sliding_window": 0}, "has sliding_attention, but sliding_window is 0"),
        ({"sliding_window": -3}, "has sliding_attention, but sliding_window is -3"),
        ({"layer_types": ["full_attention"]}, "num_hidden_layers.*2.*layer_types.*1"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({**RELATIVE, "relative_attention_num_buckets": 3}, "relative_attention_num_buckets 3 must be in \\[4"),
        (
            {**RELATIVE, "relative_attention_max_distance": 16},
            "num_buckets 32 must be in \\[4, 2 x max_distance 16",
        ),
        ({"hidden_act": "swiglu"}, "unknown hidden_act swiglu; known: .*gelu.*silu"),
        ({"norm_type": "batchnorm"}, "norm_type"),
        ({"norm_placement": "sandwich"}, "norm_placement"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"hidden_size": "33"}, "hidden_size"),
        ({"gated_mlp": "yes"}, "gated_mlp"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_name(make_config, fields, message):
    with pytest.raises(Exception, match=message):
        make_config(**fields)


@pytest.mark.parametrize("fields", [{"relative_attention_num_buckets": 4, "relative_attention_max_distance": 3}, {}])
def test_the_smallest_buckets_that_are_allowed_work(make_config, fields):
    shapes = ((DeceroEncoderConfig, DeceroEncoderModel), (DeceroDecoderConfig, DeceroDecoderModel))
    for config_class, model_class in shapes:
        model = model_class(make_config(config_class, **RELATIVE, **fields))
        assert model(torch.ones(1, 101, dtype=torch.long))[0].isfinite().all()


@pytest.mark.parametrize("config_class", [DeceroEncoderConfig, DeceroDecoderConfig, DeceroEncoderDecoderConfig])
def test_no_shape_takes_a_configuration_that_cannot_work(make_config, config_class):
    for fields, message in (
        ({"hidden_act": "swiglu"}, "unknown hidden_act"),
        ({"head_dim": 11}, "must be even"),
        ({"num_key_value_heads": 2}, "not a multiple of num_key_value_heads 2"),
        ({"position_offset": 2}, "position_offset"),
        ({**RELATIVE, "relative_attention_num_buckets": 3}, "relative_attention_num_buckets 3"),
    ):
        with pytest.raises(Exception, match=message):
            make_config(config_class, **fields)


def test_an_odd_head_size_is_refused_for_rotary_only(make_config, batch):
    config = make_config(head_dim=11, position_embedding_type="learned")
    assert DeceroEncoderModel(config)(**batch)[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
def test_the_model_compiles_without_a_graph_break(make_model, batch, positions):
    model = make_model(DeceroEncoderForMaskedLM, position_embedding_type=positions)
    torch.compiler.reset()  # what other tests compiled counts against a limit
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)
