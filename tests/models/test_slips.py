"""Well-known mistakes, each with a check that finds it; see docs/architecture.md."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDecoderModel,
    DeceroEncoderConfig,
    DeceroEncoderDecoderConfig,
    DeceroEncoderDecoderForConditionalGeneration,
    DeceroEncoderForMaskedLM,
    DeceroEncoderModel,
)
from decero.models.attention import MultiHeadAttention, scaled_dot_product_attention
from decero.models.embeddings import sinusoidal_positions
from decero.models.layers import MLP

SHAPES = {
    DeceroEncoderForMaskedLM: DeceroEncoderConfig,
    DeceroDecoderForCausalLM: DeceroDecoderConfig,
    DeceroEncoderDecoderForConditionalGeneration: DeceroEncoderDecoderConfig,
}
WRITERS = [DeceroDecoderForCausalLM, DeceroEncoderDecoderForConditionalGeneration]
SIZES = {
    "vocab_size": 37, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 14,
    "intermediate_size": 41, "max_position_embeddings": 17,
}  # fmt: skip


@pytest.fixture
def make(randomize):
    """A model of prime sizes with large weights, in eval mode."""

    def build(model_class, config_class=None, **fields):
        return randomize(model_class((config_class or SHAPES[model_class])(**{**SIZES, **fields}))).eval()

    return build


# --- attention


@pytest.mark.parametrize(("slip", "spread"), [("no scale", 16.0), ("1/d_k", 1 / 16)])
def test_the_root_keeps_scores_at_one_whatever_the_head_size(make_config, slip, spread):
    K = 256
    module = MultiHeadAttention(make_config(head_dim=K), layer_idx=0)
    q, k = torch.randn(1, 1, 101, K), torch.randn(1, 1, 101, K)
    assert (q @ k.mT * module.scaling).std() == pytest.approx(1.0, rel=0.05)
    wrong = 1.0 if slip == "no scale" else 1 / K
    assert (q @ k.mT * wrong).std() == pytest.approx(spread, rel=0.05)
    most = {s: scaled_dot_product_attention(q, k, k, scale=s)[1].amax(-1).mean() for s in (wrong, None)}
    assert 0.05 < most[None] < 0.3  # of 101 keys the first has some, not all
    assert most[wrong] > 0.8 if slip == "no scale" else most[wrong] < 0.02  # one has all; or all have 1/101


def softmax_over_queries(q, k, v, bias):
    return (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(dim=-2) @ v


def masked_after_softmax(q, k, v, bias):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).masked_fill(bias.isneginf(), 0.0) @ v


def right(q, k, v, bias):
    return scaled_dot_product_attention(q, k, v, bias)[0]


@pytest.mark.parametrize(
    ("attend", "alone"), [(right, True), (masked_after_softmax, True), (softmax_over_queries, False)]
)
def test_a_query_gets_its_answer_whatever_the_others_ask(attend, alone):
    q, k, v, bias = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 11, 7), torch.randn(2, 3, 11, 7), torch.zeros(5, 11)
    other = q.clone()
    other[:, :, 1:] = torch.randn(2, 3, 4, 7)
    before, after = attend(q, k, v, bias)[:, :, 0], attend(other, k, v, bias)[:, :, 0]
    assert torch.allclose(before, after, atol=1e-6) is alone


@pytest.mark.parametrize(("attend", "hidden"), [(right, True), (masked_after_softmax, False)])
def test_a_hidden_key_has_no_part_in_the_sum_that_divides(attend, hidden):
    q, k, v = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 11, 7), torch.randn(2, 3, 11, 7)
    bias = torch.zeros(5, 11).masked_fill(torch.arange(11) == 4, float("-inf"))
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, 4], other_v[:, :, 4] = torch.randn(7) * 3, torch.randn(7)
    assert torch.allclose(attend(q, k, v, bias), attend(q, other_k, other_v, bias), atol=1e-6) is hidden
    visible = torch.arange(11) != 4
    by_itself = right(q, k[:, :, visible], v[:, :, visible], torch.zeros(5, 10))
    assert torch.allclose(attend(q, k, v, bias), by_itself, atol=1e-6) is hidden


# --- positions


@pytest.mark.parametrize("hidden_size", [14, 64])
def test_sines_first_is_a_permutation_of_the_papers_positions(hidden_size):
    positions = torch.arange(2, 13)[None]
    paper, halves = (sinusoidal_positions(positions, hidden_size, interleaved=order) for order in (True, False))
    order = torch.cat((torch.arange(0, hidden_size, 2), torch.arange(1, hidden_size, 2)))
    assert torch.equal(paper[..., order], halves)
    assert not torch.allclose(paper, halves, atol=0.1)  # so weights trained on one cannot read the other


def test_a_causal_decoder_without_positions_still_sees_order(make):
    model = make(DeceroDecoderModel, DeceroDecoderConfig, position_embedding_type="none")
    ids, order = torch.arange(3, 14)[None], torch.tensor([4, 0, 7, 2, 9, 1, 3, 8, 6, 5, 10])
    before, after = model(ids)[0], model(ids[:, order])[0]
    assert not torch.allclose(after, before[:, order], atol=0.1)
    assert not torch.allclose(after[:, -1], before[:, -1], atol=0.01)  # the last sees all, and knows how they stood


def test_one_causal_layer_without_positions_sees_only_a_set(make):
    """The second layer sees order: its keys depend on how many and which tokens each one saw."""
    model = make(DeceroDecoderModel, DeceroDecoderConfig, position_embedding_type="none", num_hidden_layers=1)
    ids, order = torch.arange(3, 14)[None], torch.tensor([4, 0, 7, 2, 9, 1, 3, 8, 6, 5, 10])
    assert_close(model(ids[:, order])[0][:, -1], model(ids)[0][:, -1], atol=1e-5, rtol=1e-5)


# --- gradients through depth


def gradient_at_both_ends(sublayers, residual):
    """Return hidden states of 48 layers and the ratio of input gradient to output gradient."""
    hidden = [torch.randn(5, 33, dtype=torch.float64, requires_grad=True)]
    for sublayer in sublayers:
        added = sublayer(hidden[-1])
        hidden.append(hidden[-1] + added if residual else added)
    first, last = torch.autograd.grad(
        (hidden[-1] * torch.randn(5, 33)).sum(), (hidden[0], hidden[-1]), retain_graph=True
    )
    return hidden, float(first.norm() / last.norm())


@pytest.mark.parametrize("through", ["depth", "time"])
def test_gradients_vanish_with_depth_but_not_activations(make_config, through):
    """48 layers, or one 48 times as in a recurrent net. Sigmoids, as when the problem was found (Hochreiter 1991)."""
    layers = [MLP(make_config(hidden_act="sigmoid")).double() for _ in range(48)]
    for parameter in nn.ModuleList(layers).parameters():
        nn.init.normal_(parameter, std=33**-0.5)
    layers = layers if through == "depth" else layers[:1] * 48

    hidden, factor = gradient_at_both_ends(layers, residual=False)
    assert factor < 1e-20  # about 1/4 a layer: the slope of a sigmoid
    assert all(0.2 < h.std() < 2 for h in hidden)
    if through == "depth":  # a step of descent moves the last layer, and leaves the first as it was started
        first, last = layers[0].up_proj.weight, layers[-1].up_proj.weight
        steps = torch.autograd.grad(hidden[-1].square().sum(), (first, last))
        assert steps[0].norm() < 1e-15 * first.norm()
        assert steps[1].norm() > 1e-2 * last.norm()

    _, factor = gradient_at_both_ends(layers, residual=True)
    assert 0.1 < factor < 1000


def test_gradients_explode_when_each_factor_is_above_one(make_config):
    layers = [MLP(make_config(hidden_act="gelu")).double() for _ in range(48)]
    for parameter in nn.ModuleList(layers).parameters():
        nn.init.normal_(parameter, std=0.3)
    assert gradient_at_both_ends(layers, residual=False)[1] > 1e10


def deep(placement, num_layers):
    """A stack whose sublayers add about as much as they are given: std 1/sqrt(width), tokens of size one."""
    model = DeceroEncoderModel(
        DeceroEncoderConfig(
            vocab_size=37, hidden_size=32, num_hidden_layers=num_layers, num_attention_heads=4, intermediate_size=128,
            hidden_act="relu", norm_placement=placement, initializer_range=32**-0.5,
        )
    )  # fmt: skip
    nn.init.normal_(model.embed_tokens.weight)
    return model


def test_the_skip_path_has_gain_one_only_with_pre_norm():
    """The gradient is cut at the sublayers, so only the skip path is left. 48 layers."""

    def gain(placement):
        model, ends = deep(placement, 48), {}
        for layer in model.layers:
            layer.self_attn.register_forward_hook(lambda _, __, out: (out[0].detach(), out[1]))
            layer.mlp.register_forward_hook(lambda _, __, out: out.detach())
        model.layers[0].register_forward_pre_hook(lambda _, args: ends.update(first=args[0]))
        model.layers[-1].register_forward_hook(lambda _, __, out: ends.update(last=out))
        out = model(torch.randint(1, 37, (2, 11))).last_hidden_state
        return torch.autograd.grad((out * torch.randn(out.shape)).sum(), (ends["first"], ends["last"]))

    first, last = gain("pre")
    assert torch.equal(first, last)
    first, last = gain("post")
    assert first.norm() < 1e-10 * last.norm()  # about 1/sqrt(2) a norm, 96 of them


def test_the_last_gradient_shrinks_with_depth_only_in_pre_norm():
    """Xiong et al. 2020, theorem 1: by 1/sqrt(layers) in pre-norm, not at all in post-norm (hence its warm-up)."""

    def last_gradient(placement, num_layers):
        model = deep(placement, num_layers)
        out = model(torch.randint(1, 37, (3, 11))).last_hidden_state
        (out * torch.randn(out.shape)).sum().backward()
        return model.layers[-1].mlp.down_proj.weight.grad.norm()

    shrunk = {p: last_gradient(p, 64) / last_gradient(p, 2) for p in ("pre", "post")}
    assert 0.08 < shrunk["pre"] < 0.4  # sqrt(2 / 64) = 0.18
    assert 0.6 < shrunk["post"] < 1.7


# --- embeddings, dropout


def test_tied_embeddings_need_the_scale_against_the_positions():
    """Rows small enough to be a good output projection are drowned by waves of size 0.7: Vaswani et al. 2017, 3.4."""
    heard = {}
    for scale in (True, False):
        config = DeceroEncoderConfig(
            vocab_size=997, hidden_size=512, num_hidden_layers=0, num_attention_heads=8, norm_placement="post",
            position_embedding_type="sinusoidal", scale_embeddings=scale, pad_token_id=None,
        )  # fmt: skip
        model = DeceroEncoderForMaskedLM(config).eval()
        assert model.lm_head.decoder.weight is model.model.embed_tokens.weight
        ids = torch.arange(400).view(1, -1)
        waves = sinusoidal_positions(torch.arange(400)[None], 512)
        heard[scale] = float((model.model(ids)[0] - waves).detach().std() / waves.square().mean().sqrt())
    assert heard[True] > 0.5
    assert heard[False] < 0.05


@pytest.mark.parametrize("model_class", SHAPES)
def test_no_dropout_acts_in_eval(make, model_class):
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout"), 0.5)
    ids = torch.randint(1, 37, (2, 7))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model_class is WRITERS[1] else {})
    dropping, dry = make(model_class, **rates), make(model_class)
    for backend in ("eager", "sdpa"):
        dropping.set_attn_implementation(backend)
        dry.set_attn_implementation(backend)
        assert torch.equal(dropping.eval()(**inputs).logits, dry(**inputs).logits)
        assert not torch.allclose(dropping.train()(**inputs).logits, dry(**inputs).logits, atol=0.1)


# --- losses


def nll(logits_LV, labels_L):
    return -logits_LV.log_softmax(-1).gather(-1, labels_L[..., None])[..., 0]


def test_the_causal_loss_shifts_labels_exactly_once(make):
    model, ids = make(DeceroDecoderForCausalLM), torch.randint(1, 37, (3, 7))
    out = model(ids, labels=ids)
    assert_close(out.loss, nll(out.logits[:, :-1], ids[:, 1:]).mean())
    for slip in (nll(out.logits, ids), nll(out.logits[:, :-2], ids[:, 2:])):  # not shifted; shifted twice
        assert not torch.isclose(slip.mean(), out.loss, atol=1e-3)


def test_the_seq2seq_loss_shifts_the_input_and_not_the_labels(make):
    model = make(DeceroEncoderDecoderForConditionalGeneration, decoder_start_token_id=1)
    ids, labels = torch.randint(1, 37, (3, 5)), torch.randint(2, 37, (3, 7))
    out = model(ids, labels=labels)
    read = torch.cat((torch.ones(3, 1, dtype=torch.long), labels[:, :-1]), dim=1)
    assert_close(model(ids, decoder_input_ids=read).logits, out.logits)
    assert_close(out.loss, nll(out.logits, labels).mean())
    assert not torch.isclose(nll(out.logits[:, :-1], labels[:, 1:]).mean(), out.loss, atol=1e-3)  # shifted twice


@pytest.mark.parametrize("model_class", WRITERS)
def test_no_token_is_predicted_after_it_was_read(make, model_class):
    """Without the shift the loss falls to zero, because the input contains the answer."""
    model = make(model_class)
    embeds = torch.randn(1, 7, 33, requires_grad=True)
    source = {} if model_class is WRITERS[0] else {"input_ids": torch.randint(1, 37, (1, 5))}
    name = "inputs_embeds" if model_class is WRITERS[0] else "decoder_inputs_embeds"
    labels = torch.full((1, 7), -100)
    labels[0, 4] = 9
    model(**source, **{name: embeds}, labels=labels).loss.backward()
    reached = embeds.grad.abs().sum(-1)[0] > 0
    last = 3 if model_class is WRITERS[0] else 4  # label 4 is predicted by input 3, or by input 4 = label 3
    assert reached.tolist() == [place <= last for place in range(7)]


@pytest.mark.parametrize("model_class", SHAPES)
def test_padding_has_no_weight_in_the_mean_loss(make, model_class):
    model = make(model_class, decoder_start_token_id=1) if model_class is WRITERS[1] else make(model_class)
    ids = torch.randint(1, 37, (3, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [5], [2]])).long()
    labels = ids.masked_fill(mask == 0, -100)
    together = model(input_ids=ids * mask, attention_mask=mask, labels=labels).loss
    texts = [ids[b : b + 1, :length] for b, length in enumerate((7, 5, 2))]
    asked = [text.shape[1] - (model_class is WRITERS[0]) for text in texts]  # alone, a first token is nobody's next
    summed = sum(n * model(input_ids=text, labels=text).loss for n, text in zip(asked, texts, strict=True))
    assert_close(together, summed / sum(asked))
    assert together > 1.2 * summed / ids.numel()  # divided by every place: a third too small here
