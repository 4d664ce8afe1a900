"""Windows over long sequences: all items are covered, and each belongs to the window that shows most around it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decero.data.windows import best_window, window_bounds


@given(st.integers(0, 97), st.integers(1, 23), st.data())
def test_windows_cover_everything_and_share_the_stride(length, size, data):
    stride = data.draw(st.integers(0, size - 1))
    bounds = window_bounds(length, size, stride)
    assert {i for start, stop in bounds for i in range(start, stop)} == set(range(length))
    assert all(stop - start <= size for start, stop in bounds)
    assert all(one[1] - other[0] == stride for one, other in itertools.pairwise(bounds))
    assert all(stop == length for _, stop in bounds[-1:])
    assert len({stop for _, stop in bounds}) == len(bounds)  # no window lies inside another


@given(st.integers(1, 61), st.integers(1, 19), st.data())
def test_each_item_gets_the_window_with_most_context(length, size, data):
    bounds = window_bounds(length, size, data.draw(st.integers(0, size - 1)))
    chosen = best_window(length, bounds)
    for item in range(length):

        def context(window, item=item):
            start, stop = window
            if not start <= item < stop:
                return -1
            left = item - start if start else np.inf
            right = stop - 1 - item if stop < length else np.inf
            return min(left, right)

        assert context(bounds[chosen[item]]) == max(map(context, bounds))


def test_a_stride_as_long_as_the_window_is_refused():
    with pytest.raises(ValueError, match="windows of 4 items cannot share 4"):
        window_bounds(10, 4, 4)
