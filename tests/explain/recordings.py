"""Recordings made by hand."""

import numpy as np

from decero.explain.recording import Attention, Piece, Recording


def hand_made(words, heads=3, layers=2, kind="self", keys=None, seed=0, **fields):
    """A recording whose first head of layer 0 looks at the previous token; the others look anywhere."""
    queries = [Piece(i, word, i, i + 1) for i, word in enumerate(words)]
    queries[0] = Piece(0, words[0], None, None)
    keys = queries if keys is None else [Piece(i, word, i, i + 1) for i, word in enumerate(keys)]
    random = np.random.default_rng(seed)
    weights = {i: random.dirichlet([0.3] * len(keys), (heads, len(queries))).astype(np.float32) for i in range(layers)}
    if kind != "cross":
        weights[0][0] = np.eye(len(keys))[np.maximum(0, np.arange(len(keys)) - 1)]
    attention = Attention(kind, queries, keys, layers, heads, weights)
    values = {"model": "a/model", "family": "bert", "text": " ".join(words), "target": None}
    return Recording(**(values | fields), attentions={kind: attention})
