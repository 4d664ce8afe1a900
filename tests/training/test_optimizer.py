"""Optimizers: arguments that cannot work are refused before the first step."""

import builtins
import copy
from typing import get_args

import pytest
import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from decero.config.optimizer_arguments import OptimizerName
from decero.config.sections import OptimSection
from decero.errors import UserError
from decero.training.optimizer import ON_SHARDS, averaged, build_optimizer, learning_rate_at


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


def by_hand(name, model):
    """The same optimizers, built directly from their classes as their documentation says."""
    matrices = [model[1].weight, model[2].weight]
    rest = [model[0].weight], [model[1].bias, model[2].bias]
    if name == "muon":
        options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
        decayed, plain = ({"params": p, "weight_decay": w} for p, w in zip(rest, (0.1, 0.0), strict=True))
        return [torch.optim.Muon(matrices, **options), torch.optim.AdamW([decayed, plain], lr=0.01)]
    groups = [{"params": [*rest[0], *matrices], "weight_decay": 0.1}, {"params": rest[1], "weight_decay": 0.0}]
    cls, more = {
        "adamw": (torch.optim.AdamW, {}), "adam": (torch.optim.Adam, {}), "sgd": (torch.optim.SGD, {}),
        "momentum": (torch.optim.SGD, {"momentum": 0.9}), "rmsprop": (torch.optim.RMSprop, {}),
        "adafactor": (torch.optim.Adafactor, {}), "schedule_free_adamw": (AdamWScheduleFree, {}),
    }[name]  # fmt: skip
    made = cls(groups, lr=0.01, **more)
    if name == "schedule_free_adamw":
        made.train()
    return [made]


def net():
    torch.manual_seed(7)
    return nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 13), nn.Linear(13, 3))


def step(model, optimizers, seed):
    ids = torch.randint(11, (17,), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids), ids % 3).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_a_step_equals_a_direct_use_of_the_class(name):
    ours, direct = net(), net()
    optimizer = build_optimizer(ours, OptimSection(name=name, learning_rate=0.01, weight_decay=0.1))
    theirs = by_hand(name, direct)
    for seed in range(3):
        step(ours, [optimizer], seed)
        step(direct, theirs, seed)
    start = net().state_dict()
    for key, value in direct.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, start[key])


def test_the_state_of_two_joined_optimizers_is_restored():
    whole, half = net(), net()
    settings = OptimSection(name="muon", learning_rate=0.01)
    first, other = build_optimizer(whole, settings), build_optimizer(half, settings)
    step(whole, [first], 0)
    half.load_state_dict(whole.state_dict())
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    for group in (*first.param_groups, *other.param_groups):
        group["lr"] = 0.02
    step(whole, [first], 1)
    step(half, [other], 1)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_the_mean_is_evaluated_and_training_goes_on_unchanged():
    model, twin = net(), net()
    ours, theirs = (build_optimizer(m, OptimSection(name="schedule_free_adamw")) for m in (model, twin))
    for seed in range(4):
        step(model, [ours], seed)
        step(twin, [theirs], seed)
    with averaged(ours):
        mean = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    theirs.eval()
    assert all(torch.equal(a, b) for a, b in zip(mean, twin.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(mean, model.parameters(), strict=True))


def test_schedule_free_has_no_schedule():
    assert OptimSection(name="schedule_free_adamw").schedule == "constant"
    with pytest.raises(ValueError, match=r"optim\.schedule: schedule_free_adamw needs none; remove it"):
        OptimSection(name="schedule_free_adamw", schedule="cosine")
    shared = OptimSection(name="schedule_free_adamw").model_dump(exclude_unset=True)
    assert OptimSection(**(shared | {"name": "adamw"})).schedule == "linear"


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "schedulefree":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package schedulefree: pip install 'decero\[schedulefree\]'"):
        build_optimizer(net(), OptimSection(name="schedule_free_adamw"))


@pytest.mark.parametrize("name", sorted(set(get_args(OptimizerName)) - set(ON_SHARDS)))
def test_what_cannot_be_sharded_is_refused(name):
    model = net()
    model[1].weight.to_local = None  # as a DTensor has
    with pytest.raises(UserError, match=f"{name} does not support sharded weights .*; use one of adamw, adam, sgd"):
        build_optimizer(model, OptimSection(name=name))


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("schedule_free_adamw", {"betas": [0.0, 0.9]}, "betas is .*; give two numbers below 1, the first above 0"),
        ("schedule_free_adamw", {"warmup_steps": 3}, "warmup_steps: unknown argument of AdamWScheduleFree"),
        ("muon", {"momentun": 0.9}, "did you mean optim.arguments.momentum"),
        ("schedule_free_adamw", {"eps": [1e-8, 1e-3]}, "eps is .*; give a number from 0"),
        ("muon", {"eps": None}, "eps is None; give a number from 0"),
        ("muon", {"ns_coefficients": 3}, "ns_coefficients is 3; give three numbers in a list"),
    ],
)
def test_impossible_arguments_are_refused(name, arguments, says):
    with pytest.raises(UserError, match=says):
        build_optimizer(net(), OptimSection(name=name, arguments=arguments))


def test_words_and_lists_are_checked_by_the_schema():
    OptimSection(name="muon", arguments={"adjust_lr_fn": "original", "ns_coefficients": [3.4, -4.7, 2.0]})
    with pytest.raises(ValueError, match="adjust_lr_fn is best; give original or match_rms_adamw"):
        OptimSection(name="muon", arguments={"adjust_lr_fn": "best"})
    with pytest.raises(ValueError, match="give a number or three of them in a list"):
        OptimSection(name="muon", arguments={"ns_coefficients": [1.0, 2.0]})
    with pytest.raises(ValueError, match="ns_steps is 1000; give a whole number from 1 to 99"):
        OptimSection(name="muon", arguments={"ns_steps": 1000})


def test_muon_without_matrices_is_refused():
    with pytest.raises(UserError, match="muon trains the matrices of layers, and this run trains none; use adamw"):
        build_optimizer(nn.Sequential(nn.Embedding(11, 5), nn.LayerNorm(5)), OptimSection(name="muon"))
