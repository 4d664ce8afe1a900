"""Optimizers: arguments that cannot work are refused before the first step."""

import pytest
from torch import nn

from decero.config.sections import OptimSection
from decero.errors import UserError
from decero.training.optimizer import build_optimizer


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_arguments_for_other_loops_are_refused(name):
    with pytest.raises(UserError, match=f"optim.arguments.{name}: unknown argument of RMSprop; use one of alpha"):
        build_optimizer(nn.Linear(2, 3), OptimSection(name="rmsprop", arguments={name: True}))


def test_one_number_where_two_belong_is_refused():
    with pytest.raises(UserError, match=r"optim\.arguments: Adafactor rejects them"):
        build_optimizer(nn.Linear(2, 3), OptimSection(name="adafactor", arguments={"eps": 1}))
