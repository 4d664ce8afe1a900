"""Denormal numbers are 0 while a recipe runs, and what they were before and after."""

import sys

import pytest
import torch

from decero.execution.denormals import denormals_as_zero


def halves():
    """Halve the smallest normal numbers of float32 (torch) and of float64 (Python)."""
    return (torch.tensor([torch.finfo(torch.float32).tiny]) / 2).item(), sys.float_info.min / 2


def test_denormals_are_zero_inside_only():
    before = halves()
    assert all(before)
    with denormals_as_zero():
        assert halves() == (0, 0)
        with denormals_as_zero():
            pass
        assert halves() == (0, 0)
    assert halves() == before


def test_an_error_leaves_no_trace():
    before = halves()
    with pytest.raises(KeyError), denormals_as_zero():
        raise KeyError
    assert halves() == before
