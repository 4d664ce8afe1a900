"""Test what the advice recommends, and which warnings it gives."""

from dataclasses import replace

import numpy as np
import pytest

from decero.evaluation import ScoredRun, judge
from decero.evaluation.advice import advise

N = 97
FIELDS = {"wall_time_s": 60.0, "num_parameters": 4_400_000}


def runs_of(contender, budget, *shares, curve=(), **more):
    found = []
    for seed, share in enumerate(shares):
        scores = (np.arange(N) < round(share * N)).astype(float)
        metrics = {"accuracy": scores.mean()}
        fields = FIELDS | {"curve": list(curve)} | more
        found.append(ScoredRun(contender, budget, seed, "ok", metrics=metrics, scores=scores, **fields))
    return found


def advice(runs, reference="ours", metric="accuracy"):
    def against(name):
        return judge(runs, metric=metric, reference=name, seed=0)

    return advise(against(reference), runs, against)


def test_the_best_is_recommended_whoever_the_reference_is():
    runs = [r for b in (25, 100) for r in runs_of("ours", b, 0.5, 0.51, 0.52) + runs_of("big", b, 0.8, 0.81, 0.82)]
    (line,) = advice(runs)
    assert line == "Ship big: it has the best test accuracy (%), 81.4 and 81.4. It is shown to be better than ours."
    assert advice(runs, "big") == (line,)


def test_a_cheaper_contender_that_is_not_worse_is_named():
    runs = runs_of("ours", 9, 0.80, 0.81, 0.79) + runs_of("bad", 9, 0.2, 0.2, 0.2)
    runs += runs_of("words", 9, 0.79, 0.80, 0.80, wall_time_s=1.0, num_parameters=170_000)
    (line,) = advice(runs)
    assert "shown to be better than bad." in line
    assert (
        "not shown to be better than words (170.0 k parameters instead of 4.4 M, 1.0 s a run instead of 1.0 min)"
        in line
    )


def test_a_contender_beaten_at_some_budgets_is_named():
    runs = [r for b in (25, 100) for r in runs_of("big", b, 0.8, 0.81, 0.82) + runs_of("bad", b, 0.2, 0.2, 0.2)]
    runs += runs_of("ours", 25, 0.5, 0.51, 0.52) + runs_of("ours", 100, 0.79, 0.8, 0.81)
    runs += [r for b in (25, 100) for r in runs_of("equal", b, 0.79, 0.8, 0.81)]
    (line,) = advice(runs)
    assert "It is shown to be better than bad. It is shown to be better than ours only with 25 labels." in line
    assert line.endswith("At no budget is it shown to be better than equal.")


def test_budgets_of_one_of_two_winners_are_these_budgets():
    runs = [r for b in (25, 100) for r in runs_of("a", b, 0.8, 0.81) + runs_of("b", b, 0.79, 0.8)]
    runs += runs_of("a", None, 0.3, 0.3) + runs_of("b", None, 0.9, 0.9)
    first, second = advice(runs, "a")
    assert first.startswith("Ship a with 25 labels and 100 labels: ")
    assert first.endswith("At none of these budgets is it shown to be better than b.")
    assert second.endswith("It is shown to be better than a.")


def test_the_advice_agrees_with_the_table_about_the_reference():
    """With another reference, p is adjusted for other comparisons."""
    runs = runs_of("ours", 9, 0.5, 0.5) + runs_of("big", 9, 0.8, 0.8) + runs_of("third", 9, 0.7, 0.7)

    def against(name):
        found = judge(runs, metric="accuracy", reference=name, seed=0)
        return (
            found
            if name == "ours"
            else replace(found, comparisons=[replace(c, winner=None) for c in found.comparisons])
        )

    (line,) = advise(against("ours"), runs, against)
    assert "It is shown to be better than ours. It is not shown to be better than third." in line


def test_other_budgets_may_have_another_winner():
    runs = runs_of("ours", 25, 0.8, 0.8) + runs_of("b", 25, 0.3, 0.3)
    runs += runs_of("ours", None, 0.4, 0.4) + runs_of("b", None, 0.9, 0.9)
    first, second = advice(runs)
    assert first.startswith("Ship ours with 25 labels: ")
    assert second.startswith("Ship b with all labels: ")


def test_nothing_is_recommended_without_two_results():
    failed = ScoredRun("b", 9, 0, "failed", error="no memory")
    assert advice([*runs_of("ours", 9, 0.5), failed])[0].startswith("Nothing to recommend")


@pytest.mark.parametrize(("epochs", "warned"), [(0.03, True), (1.0, False), (7.0, False)])
def test_less_than_an_epoch_is_a_warning(epochs, warned):
    curve = [{"step": 1, "epoch": epochs, "loss": 1.0}]
    runs = runs_of("ours", 9, 0.5, 0.5) + runs_of("b", 9, 0.4, 0.4, curve=curve)
    said = [line for line in advice(runs) if "less than one epoch" in line]
    assert said == (["b saw less than one epoch of its examples: 3 % with 9 labels."] if warned else [])


def test_contenders_with_equal_shares_of_an_epoch_are_one_line():
    curves = [[{"step": 1, "epoch": epoch, "loss": 1.0}] for epoch in (0.03, 0.5, 0.03)]
    runs = [
        run
        for name, curve in zip(("ours", "b", "c"), curves, strict=True)
        for run in runs_of(name, None, 0.4, 0.5, curve=curve)
    ]
    assert [line for line in advice(runs) if "less than one epoch" in line] == [
        "ours and c saw less than one epoch of their examples: 3 % with all labels.",
        "b saw less than one epoch of its examples: 50 % with all labels.",
    ]


@pytest.mark.parametrize(("slope", "warned"), [(1.0, True), (0.0, False)])
def test_a_loss_that_still_falls_is_a_warning(slope, warned):
    curve = [{"step": s, "epoch": 2.0, "loss": 2.0 - slope * s / 50} for s in range(1, 51)]
    runs = runs_of("ours", 9, 0.5, 0.5, curve=curve) + runs_of("b", 9, 0.4, 0.4)
    said = [line for line in advice(runs) if "still fell" in line]
    assert said == (
        ["The loss still fell at the end: ours (with 9 labels). More steps may give better results."] if warned else []
    )


def test_lower_is_better_for_errors():
    def scored(name, value):
        rows = np.full(40, -value) + np.random.default_rng(0).normal(0, 0.01, 40)
        fields = {"metrics": {"mse": value}, "scores": rows}
        return [ScoredRun(name, None, s, "ok", **fields, **FIELDS) for s in range(2)]

    runs = scored("ours", 0.5) + scored("b", 0.1)
    assert advice(runs, metric="mse")[0].startswith("Ship b: it has the best test mean squared error, 0.100")
