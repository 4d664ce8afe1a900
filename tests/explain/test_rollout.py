"""Rollout is a product of matrices, and what is left without sinks still sums to 1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from decero.errors import UserError
from decero.explain.recording import Attention, HiddenStates, Piece
from decero.explain.rollout import rollout, sinks_of, without_sinks
from decero.explain.stream_measures import cosines_to_last, cosines_to_next, norms

PIECES = [Piece(i, f"t{i}", i, i + 1) for i in range(7)]


def attention(layers=3, heads=2, length=5, seed=0, kind="self", pieces=PIECES):
    rng = np.random.default_rng(seed)
    weights = {}
    for layer in range(layers):
        scores = rng.exponential(size=(heads, length, length)) * (np.tri(length) if kind == "causal" else 1)
        weights[layer] = (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
    return Attention(kind, pieces[:length], pieces[:length], layers, heads, weights)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
def test_rollout_is_the_product_of_residual_mixed_layers(layers, heads, length, residual, seed):
    one = attention(layers, heads, length, seed)
    flows = rollout(one, residual)
    product = np.eye(length)
    for layer in range(layers):
        product = (residual * np.eye(length) + (1 - residual) * one.weights[layer].mean(0)) @ product
        assert_allclose(flows[layer], product, atol=1e-6)
    assert_allclose(flows.sum(-1), 1, atol=1e-12)


def test_rollout_follows_a_chain_of_previous_tokens():
    previous = np.eye(5, k=-1, dtype=np.float32)
    previous[0, 0] = 1
    chain = Attention("causal", PIECES[:5], PIECES[:5], 2, 1, {0: previous[None], 1: previous[None]})
    assert rollout(chain, 0.0)[1].argmax(-1).tolist() == [0, 0, 0, 1, 2]  # two steps back
    assert_allclose(rollout(chain)[1][4], [0, 0, 0.25, 0.5, 0.25])


def test_rollout_refuses_what_it_cannot_follow():
    cross = attention()
    cross.kind = "cross"
    with pytest.raises(UserError, match="rollout follows one text"):
        rollout(cross)
    part = attention()
    del part.weights[1]
    with pytest.raises(UserError, match="rollout needs all 3 layers; layer 1 was not recorded"):
        rollout(part)


def test_without_sinks_the_rest_of_each_row_sums_to_one():
    special = [Piece(0, "[CLS]", None, None), *PIECES[1:4], Piece(9, "[SEP]", None, None)]
    assert sinks_of(attention(pieces=special)) == [0, 4]
    causal = attention(kind="causal")
    assert sinks_of(causal) == [0]
    weights = causal.weights[0]
    rest = without_sinks(weights, [0])
    assert (rest[:, :, 0] == 0).all()
    assert (rest[:, 0] == 0).all()  # the first row sees the sink alone
    assert_allclose(rest[:, 1:].sum(-1), 1, atol=1e-6)
    assert_allclose(rest[:, 4, 1:] * weights[:, 4, 1:].sum(-1, keepdims=True), weights[:, 4, 1:], atol=1e-6)
    assert causal.weights[0][:, :, 0].any()  # the recording is unchanged


def test_measures_of_the_stream_are_those_of_its_vectors():
    states = [np.float32([[3, 4], [1, 0]]), np.float32([[0, 5], [0, 0]]), np.float32([[0, 2], [5, 0]])]
    hidden = HiddenStates("encoder", PIECES[:2], states, True)
    assert_allclose(norms(hidden), [[5, 1], [5, 0], [2, 5]])
    assert_allclose(cosines_to_next(hidden), [[0.8, 0], [1, 0]], atol=1e-6)
    assert_allclose(cosines_to_last(hidden), [[0.8, 1], [1, 0], [1, 1]], atol=1e-6)
