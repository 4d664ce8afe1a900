"""Measure how the state of each token changes from layer to layer."""

import numpy as np

from decero.explain.recording import HiddenStates


def norms(hidden: HiddenStates) -> np.ndarray:
    """Return the Euclidean length of each state: (layers + 1, length)."""
    return np.linalg.norm(np.stack(hidden.states), axis=-1)


def cosines_to_next(hidden: HiddenStates) -> np.ndarray:
    """Return the cosine between each state and that after the next layer: (layers, length)."""
    states = np.stack(hidden.states)
    return _cosines(states[:-1], states[1:])


def cosines_to_last(hidden: HiddenStates) -> np.ndarray:
    """Return the cosine between each state and that after the last layer: (layers + 1, length); the last row is 1."""
    states = np.stack(hidden.states)
    return _cosines(states, states[-1:])


def _cosines(a_SLD: np.ndarray, b_SLD: np.ndarray) -> np.ndarray:
    """Return the cosines along the last axis; 0 beside a state that is all zero."""
    lengths = np.linalg.norm(a_SLD, axis=-1) * np.linalg.norm(b_SLD, axis=-1)
    return np.divide((a_SLD * b_SLD).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
