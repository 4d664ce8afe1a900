"""Contexts around a forward pass leave the model as it was."""

import pytest
from torch import nn

from decero.explain.capture import frozen


@pytest.mark.parametrize("error", [None, KeyError])
def test_frozen_restores_which_weights_are_trained(error):
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    try:
        with frozen(model):
            assert not any(weight.requires_grad for weight in model.parameters())
            if error:
                raise error
    except KeyError:
        pass
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
