"""Optimizers: arguments that cannot work are refused before the first step."""

import pytest
from torch import nn

from decero.config.sections import OptimSection
from decero.errors import UserError
from decero.training.optimizer import build_optimizer, learning_rate_at


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_arguments_for_other_loops_are_refused(name):
    with pytest.raises(UserError, match=f"optim.arguments.{name}: unknown argument of RMSprop; use one of alpha"):
        build_optimizer(nn.Linear(2, 3), OptimSection(name="rmsprop", arguments={name: True}))


def test_one_number_where_two_belong_is_refused():
    with pytest.raises(UserError, match=r"optim\.arguments: Adafactor rejects them"):
        build_optimizer(nn.Linear(2, 3), OptimSection(name="adafactor", arguments={"eps": 1}))


def rates(steps, **optim):
    config = OptimSection(learning_rate=0.8, **optim)
    rate = learning_rate_at(build_optimizer(nn.Linear(2, 3), config), config, steps)
    return [rate(step) for step in range(steps)]


def test_warmup_stable_decay_is_a_trapezoid():
    found = rates(10, schedule="warmup_stable_decay", num_warmup_steps=2, num_decay_steps=4)
    assert found == pytest.approx([0.0, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2])
    assert rates(10, schedule="warmup_stable_decay") == pytest.approx([0.8] * 9 + [0.4])  # a fifth


@pytest.mark.parametrize(
    ("optim", "line"),
    [
        ({"num_decay_steps": 3}, "optim.num_decay_steps: the schedule linear has none"),
        (
            {"schedule": "warmup_stable_decay", "num_warmup_steps": 7, "num_decay_steps": 4},
            "7 steps of warm-up and 4 of decay exceed the 10 steps",
        ),
    ],
)
def test_decay_steps_that_do_not_fit_are_refused(optim, line):
    with pytest.raises(UserError, match=line):
        rates(10, **optim)
