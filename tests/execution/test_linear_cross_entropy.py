"""The fused loss equals projection and cross-entropy in value and gradient, for any chunk and dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from decero.execution import linear_cross_entropy as fused_loss
from decero.execution.linear_cross_entropy import linear_cross_entropy


def make(items=29, vocabulary=41, model=13, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(items, model, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, model, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(vocabulary, (items,), generator=generator)


@pytest.fixture
def calls(monkeypatch):
    """Record which operator computes each loss."""
    names = []
    for name, module, function in (("ours", fused_loss, "_apply"), ("torch", F, "linear_cross_entropy")):
        original = getattr(module, function, None)  # torch has none before 2.13

        def record(*args, name=name, original=original, **options):
            names.append(name)
            return original(*args, **options)

        monkeypatch.setattr(module, function, record, raising=False)
    return names


@pytest.fixture(params=["ours", "torch"])
def operator(request, calls, monkeypatch):
    """Let one of the two operators compute the loss, whichever is faster."""
    if request.param == "torch" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("this torch has no chunked loss")
    monkeypatch.setattr(fused_loss, "_torch_is_faster", lambda hidden, weight: request.param == "torch")
    yield request.param
    assert set(calls) == {request.param}


@pytest.mark.parametrize("chunk", [1, 7, 29, 512])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("operator", "smoothing", "multiple"),
    [("torch", 0.0, 1), ("ours", 0.0, 1), ("ours", 0.0, 16), ("ours", 0.1, 1), ("ours", 0.1, 16)],
    indirect=["operator"],
)
def test_loss_and_gradients_equal_the_unfused_ones(chunk, has_bias, smoothing, multiple, operator, monkeypatch):
    """A GPU rounds the vocabulary up; 41 to 48 is tried here. Smoothing is ours alone."""
    monkeypatch.setattr(fused_loss, "vocabulary_multiple", lambda device: multiple)
    hidden, weight, bias, labels = make()
    inputs = (hidden, weight, bias) if has_bias else (hidden, weight)
    expected = F.cross_entropy(F.linear(hidden, weight, bias if has_bias else None), labels, reduction="sum",
                               label_smoothing=smoothing)  # fmt: skip
    got = linear_cross_entropy(hidden, weight, bias if has_bias else None, labels, chunk, smoothing)
    assert_close(got, expected)
    # Scaled, because the loop divides the loss by the items of a step.
    for fused, unfused in zip(
        torch.autograd.grad(got * 0.3, inputs), torch.autograd.grad(expected * 0.3, inputs), strict=True
    ):
        assert_close(fused, unfused, atol=2e-6, rtol=1e-5)


def test_torch_computes_fp32_with_gradients_and_we_the_rest(calls):
    hidden, weight, bias, labels = make()
    linear_cross_entropy(hidden, weight, bias, labels)
    assert calls == ["torch" if hasattr(torch.nn, "LinearCrossEntropyOptions") else "ours"]
    calls.clear()
    linear_cross_entropy(hidden, weight, bias, labels, label_smoothing=0.1)
    linear_cross_entropy(hidden[:0], weight, bias, labels[:0])
    linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear_cross_entropy(hidden, weight, bias, labels)
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, bias, labels)
    assert calls == ["ours"] * 5


def test_gradients_pass_the_numerical_check():
    hidden, weight, bias, labels = make(5, 7, 3, torch.float64)
    # The softmax is always fp32, so the finite-difference step is large.
    torch.autograd.gradcheck(
        lambda *inputs: linear_cross_entropy(*inputs, labels, 2).double(), (hidden, weight, bias), eps=1e-3, atol=5e-3
    )


def test_without_gradients_only_the_projection_is_computed():
    hidden, weight, bias, labels = make()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear_cross_entropy(hidden, weight, bias, labels)
    assert counter.get_total_flops() == 2 * 29 * 41 * 13


def test_frozen_inputs_get_no_gradient(operator):
    hidden, weight, bias, labels = make()
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, bias, labels).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, bias, labels).requires_grad


def test_autocast_multiplies_in_bf16_and_keeps_gradient_types():
    hidden, weight, bias, labels = make()
    exact = linear_cross_entropy(hidden, weight, bias, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = linear_cross_entropy(hidden, weight, bias, labels)
        rounded.backward()
    assert rounded.dtype == torch.float32
    assert 0 < abs(rounded - exact) / exact < 0.02
    assert {t.grad.dtype for t in (hidden, weight, bias)} == {torch.float32}


def test_no_scored_items_give_zero_loss_and_gradients():
    hidden, weight, bias, labels = make()
    loss = linear_cross_entropy(hidden[:0], weight, bias, labels[:0])
    loss.backward()
    assert loss == 0
    assert weight.grad.eq(0).all()
