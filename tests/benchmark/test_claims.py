"""The long-range experiments: gradients against autograd by hand, and verdicts from numbers."""

import math

import pytest
import torch
from torch import nn

from decero.benchmark.claims import HOLDS, NOT_HERE, PARALLEL, difference_interval, judge, mean_interval
from decero.benchmark.gradient_distance import gradient_by_distance


def test_the_gradient_equals_the_product_of_jacobians():
    """h_t = tanh(W x_t + U h_(t-1)): dh_T/dx_(T-d) = prod diag(1 - h^2) U ... diag(1 - h^2) W."""
    torch.manual_seed(3)
    rnn = nn.RNN(5, 7, batch_first=True).double()
    x_BLD, u_BD = torch.randn(3, 11, 5, dtype=torch.double), torch.randn(3, 7, dtype=torch.double)
    found = gradient_by_distance(lambda inputs: rnn(inputs)[0], x_BLD, u_BD)
    h_BLD = rnn(x_BLD)[0].detach()
    squares = torch.zeros(11, dtype=torch.double)
    for b in range(3):
        row = u_BD[b]
        for d in range(11):
            row = row * (1 - h_BLD[b, 10 - d] ** 2)
            squares[d] += (row @ rnn.weight_ih_l0.detach()).pow(2).sum()
            row = row @ rnn.weight_hh_l0.detach()
    assert found == pytest.approx((squares / 3).sqrt().tolist(), rel=1e-9)


def gradients(ours, theirs):
    made = [{"before": [1.0, share], "after": [1.0, share]} for share in (ours, 1.1 * ours)]
    rival = [{"before": [1.0, share], "after": [1.0, share]} for share in (theirs, 1.1 * theirs)]
    return {"distances": [1, 64], "arms": {"attention": made, "LSTM": rival}}


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [(0.9, 1e-12, HOLDS), (1e-9, 1e-12, NOT_HERE), (0.9, 0.5, NOT_HERE), (1.0, 0.0, HOLDS)],
)
def test_the_claim_of_gradients(ours, theirs, verdict):
    claim = judge("gradients", gradients(ours, theirs), "attention", "cpu")
    assert claim.verdict == verdict
    assert "at distance 64 as a share of that at 1" in claim.evidence


def speed(ours, theirs):
    def at(seconds, sequential):
        return {"seconds": [seconds, 1.01 * seconds, 1.02 * seconds], "sequential": sequential}

    lengths = {
        str(n): {"arms": {"attention": at(a, 2), "LSTM": at(b, 2 * n), "conv": at(1e-9, 2)}}
        for n, a, b in zip((64, 512), ours, theirs, strict=True)
    }
    return {"lengths": lengths}


@pytest.mark.parametrize(
    ("ours", "theirs", "device", "verdict"),
    [((1, 1), (3, 3), "cpu", HOLDS), ((1, 5), (3, 3), "cpu", PARALLEL), ((1, 5), (3, 3), "cuda", NOT_HERE)],
)
def test_the_claim_of_speed_is_about_recurrent_arms(ours, theirs, device, verdict):
    claim = judge("speed", speed(ours, theirs), "attention", device)
    assert claim.verdict == verdict
    assert "times LSTM at 512" in claim.evidence
    assert "conv" not in claim.evidence


def recall(ours, theirs):
    arms = {"attention": ours, "LSTM": theirs, "min-GRU": [0.0] * 3}
    runs = {arm: {"runs": [{"test": {"accuracy": a}} for a in accuracies]} for arm, accuracies in arms.items()}
    return {"arms": runs, "chance": 0.25}


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([1.0, 1.0, 1.0], [0.4, 0.5, 0.45], HOLDS),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], HOLDS),
        ([1.0, 0.25, 0.9], [0.6, 0.6, 0.6], NOT_HERE),
        ([0.24, 0.25, 0.24], [0.1, 0.1, 0.1], NOT_HERE),  # better than the rival, but chance
    ],
)
def test_the_claim_of_recall(ours, theirs, verdict):
    claim = judge("recall", recall(ours, theirs), "attention", "cpu")
    assert claim.verdict == verdict
    assert "of LSTM, the best rival" in claim.evidence


def test_intervals_by_hand():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    assert mean - low == pytest.approx(high - mean)
    assert difference_interval([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])[1:] == pytest.approx(
        (1 - 2.776445 * math.sqrt(2 / 3), 1 + 2.776445 * math.sqrt(2 / 3)), rel=1e-6
    )
