"""Losses are sums over scored items. Projecting only those changes the cost, not the result."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    EsmConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)  # fmt: skip

from decero.data.packing import Packed
from decero.execution.objective import (
    _ONLY_PROJECTS,
    classification,
    projecting_only,
    token_loss,
)
from decero.execution.optimize import compile_layers
from decero.models import DeceroEncoderConfig

SIZES = {
    "vocab_size": 101,
    "hidden_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 37,
}
CONFIGS = [
    DeceroEncoderConfig(**SIZES, head_dim=10),
    BertConfig(**SIZES),
    RobertaConfig(**SIZES, pad_token_id=1),
    MPNetConfig(**SIZES),
    ElectraConfig(**SIZES, embedding_size=22),
    EsmConfig(**SIZES, pad_token_id=0, mask_token_id=4, token_dropout=False),  # has a separate bias
    DistilBertConfig(vocab_size=101, dim=22, n_layers=2, n_heads=2, hidden_dim=37),
    ModernBertConfig(**(SIZES | {"hidden_size": 20}), pad_token_id=0, global_attn_every_n_layers=1),
]


def batch(seed=0):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 101, (3, 13), generator=rng)
    labels = torch.where(torch.rand(3, 13, generator=rng) < 0.3, ids, -100)
    attention = torch.ones_like(ids)
    attention[1, 9:] = 0
    labels[1, 9:] = -100
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.model_type)
def test_masked_loss_and_gradient_are_stock_times_the_items(config):
    model = AutoModelForMaskedLM.from_config(config).eval()
    b = batch()
    scored = int((b["labels"] != -100).sum())
    ours = token_loss(model, b)
    ours.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    stock = model(**b).loss * scored
    stock.backward()
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-4)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_projecting_only_selects_positions_and_leaves_no_hook():
    model = AutoModelForMaskedLM.from_config(CONFIGS[0]).eval()
    b = batch()
    scored = b.pop("labels") != -100
    full = model(**b).logits
    with projecting_only(model, scored):
        part = model(**b).logits
    assert part.shape == (int(scored.sum()), 101)
    torch.testing.assert_close(part, full[scored])
    torch.testing.assert_close(model(**b).logits, full)


class Echo(torch.nn.Module):
    """Return the inputs as logits."""

    def forward(self, input_ids):
        return type("Output", (), {"logits": input_ids})()


@pytest.mark.parametrize(
    ("problem_type", "logits", "labels", "expected"),
    [
        ("single_label_classification", torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), F.cross_entropy),
        ("multi_label_classification", torch.randn(5, 3), torch.ones(5, 3).tril(), F.binary_cross_entropy_with_logits),
        ("regression", torch.randn(5, 1), torch.randn(5), lambda p, t: F.mse_loss(p[:, 0], t)),
    ],
)  # fmt: skip
def test_classification_losses_are_sums_over_examples(problem_type, logits, labels, expected):
    objective = classification(lambda rows: {}, problem_type)
    b = {"input_ids": logits, "labels": labels}
    torch.testing.assert_close(objective.loss(Echo(), b), 5 * expected(logits, labels))
    assert objective.count(b) == 5


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_class_weights_give_the_weighted_mean_for_any_split(problem_type):
    """The divisor is the sum of the weights, so micro-batches of any size give the gradient of the whole step."""
    single, weights = problem_type.startswith("single"), torch.tensor([0.01, 5.0, 0.3])
    logits = torch.randn(5, 3, requires_grad=True)
    labels = torch.tensor([0, 0, 2, 1, 0]) if single else torch.ones(5, 3).tril()
    objective = classification(None, problem_type, weights.numpy())

    def mean(*parts):
        batches = [{"input_ids": logits[part], "labels": labels[part]} for part in parts]
        return sum(objective.loss(Echo(), b) for b in batches) / sum(objective.count(b) for b in batches)

    if single:
        expected = F.cross_entropy(logits, labels, weights)
    else:
        each = F.binary_cross_entropy_with_logits(logits, labels, torch.where(labels > 0, weights, 1), reduction="none")
        expected = each.sum() / torch.where(labels > 0, weights, 1).sum()
    (gradient,) = torch.autograd.grad(expected, logits)
    for parts in ([slice(0, 5)], [slice(0, 1), slice(1, 5)], [slice(n, n + 1) for n in range(5)]):
        assert mean(*parts).item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(torch.autograd.grad(mean(*parts), logits)[0], gradient, atol=1e-6, rtol=1e-5)


def test_a_head_that_never_calls_its_projection_keeps_its_loss():
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
    narrow = {"embedding_size": 20, "intra_bottleneck_size": 24, "num_feedforward_networks": 1}
    model = AutoModelForMaskedLM.from_config(MobileBertConfig(vocab_size=101, **sizes, **narrow)).eval()
    b = batch()
    scored = int((b["labels"] != -100).sum())
    torch.testing.assert_close(token_loss(model, b), model(**b).loss * scored)


def test_a_batch_without_scored_items_decides_nothing():
    model = AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**SIZES, head_dim=10)).eval()
    b = batch()
    assert token_loss(model, b | {"labels": torch.full_like(b["labels"], -100)}) == 0
    assert model.get_output_embeddings() not in _ONLY_PROJECTS
    token_loss(model, b)
    assert _ONLY_PROJECTS[model.get_output_embeddings()]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("fields", [
    {}, {"norm_placement": "post", "position_embedding_type": "learned"}, {"sliding_window": 2},
    {"position_embedding_type": "relative", "scale_attn_weights": False}, {"num_key_value_heads": 1},
], ids=["rotary", "post", "sliding", "relative", "grouped"])  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_scored_queries_give_the_same_loss_and_gradient(backend, fields, packed):
    model = AutoModelForMaskedLM.from_config(
        DeceroEncoderConfig(**SIZES, head_dim=10, **fields), attn_implementation=backend
    )
    b = batch()
    b["labels"][2] = -100  # a row without scored positions
    b = Packed(lambda rows: b, 26).pack(b) if packed else b
    found = []
    for scored_queries in (False, True):
        model.zero_grad()
        loss = token_loss(model.train(), b, scored_queries=scored_queries)
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_scored_queries_compute_only_scored_positions(precision, monkeypatch):
    """Test the model as a run prepares it: accelerate wraps its forward in autocast."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # works without a C++ compiler
    model = AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**SIZES, head_dim=10))
    AcceleratorState._reset_state(reset_partial_state=True)
    model = Accelerator(cpu=True, mixed_precision=precision).prepare_model(model, evaluation_mode=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    seen = [[], []]
    for layer, shapes in zip(model.model.layers, seen, strict=True):
        layer.mlp.register_forward_pre_hook(lambda _, inputs, shapes=shapes: shapes.append(inputs[0].shape[:2]))
    b = batch()
    token_loss(model, b, scored_queries=True)
    most = int((b["labels"] != -100).sum(dim=1).max())
    assert most < 13
    assert set(seen[0]) == {(3, 13)}
    assert set(seen[1]) == {(3, most)}
    compile_layers(model)  # all layers but the last
    seen[1].clear()
    token_loss(model, b, scored_queries=True)
    assert set(seen[1]) == {(3, most)}
