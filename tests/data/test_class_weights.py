"""Class weights: what balanced means, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decero.data.class_weights import class_weights
from decero.errors import UserError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balanced_classes_weigh_the_same_in_sum(labels):
    weights = class_weights("balanced", labels, list("abcde"), SINGLE)
    sums = {label: weights[label] * labels.count(label) for label in set(labels)}
    assert np.allclose(list(sums.values()), len(labels) / len(sums))
    assert all(weights[label] == 1 for label in set(range(5)) - set(labels))


@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=40))
def test_positive_examples_weigh_as_much_as_negative_ones(labels):
    weights = class_weights("balanced", labels, list("abc"), MULTI)
    positive = np.sum(labels, axis=0)
    for n, weight in zip(positive, weights, strict=True):
        if 0 < n < len(labels):
            assert weight * n == pytest.approx(len(labels) - n)
        else:
            assert weight == 1


def test_a_mapping_weighs_the_labels_that_it_names():
    assert class_weights({"spam": 3.0}, [0, 1], ["ham", "spam"], SINGLE).tolist() == [1, 3]
    with pytest.raises(UserError, match=r"label 'spm' is not in train; did you mean spam\?"):
        class_weights({"spm": 3.0}, [0, 1], ["ham", "spam"], SINGLE)
