"""A comparison keeps one model: of the contender that is shipped, the seed that validation prefers."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from decero.comparison.best_model import best_run, drop_others, note_seeds, preferred_seed, push_lines
from decero.comparison.plan import PlannedRun

# contender -> (test, validation) of each seed; a failed seed is None
SCORES = {
    "small": [(0.61, 0.7), (0.63, 0.8), (0.62, 0.75)],
    "big": [(0.8, 0.9), (0.9, 0.85), None],
    'odd "name': [(0.85, 0.1), (0.84, 0.2), (0.86, 0.3)],
    "words": [(0.5, None)] * 3,
}


class Plan(SimpleNamespace):
    @property
    def candidates(self):
        return [run for run in self.runs if run.candidate]


@pytest.fixture
def plan(tmp_path):
    runs = [
        PlannedRun(name, None, seed, tmp_path / name.strip('"') / str(seed), None, name, candidate=name != "words")
        for name in SCORES
        for seed in range(3)
    ]
    comparison = SimpleNamespace(contenders=dict.fromkeys(SCORES), reference="small", folds=None, seeds=[0, 1, 2])
    task = SimpleNamespace(token_metrics=(), metrics=("accuracy",), validation_metric=lambda name: name)
    return Plan(runs=runs, judged=runs, comparison=comparison, task=task, metric="accuracy", last=None)


def do(run, scores, metric="accuracy"):
    """Leave what a run leaves."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record = {"status": "failed", "error": "broken", "metric": {}}
    if scores is not None:
        (run.folder / "model").mkdir(exist_ok=True)
        test, validation = scores
        record = {"status": "ok", "metric": {metric: test}}
        record |= {} if validation is None else {"validation": {metric: validation, "loss": -validation}}
    (run.folder / "result.json").write_text(json.dumps(record))


def models(plan):
    return [run.folder for run in plan.candidates if (run.folder / "model").is_dir()]


def finish(plan, scores=SCORES, metric="accuracy"):
    most = 0
    for run in plan.runs:
        do(run, scores[run.contender][run.seed], metric)
        most = max(most, len(models(plan)))
        drop_others(plan)
        assert len(models(plan)) <= 2
    return most


def test_one_model_is_left_of_the_shipped_contender(plan):
    assert finish(plan) == 3, "the best so far, that of this contender, and the one that was just saved"
    best = best_run(plan)
    assert (best.contender, best.seed) == ("big", 0), "0.85 on average; seed 1 tests better, seed 0 validates better"
    assert models(plan) == [best.folder]
    verdict = SimpleNamespace(unit="labels", cell=lambda *key: SimpleNamespace(mean=0.85, sd=0.07, values={0: 1, 1: 1}))
    [line] = push_lines(plan, verdict)
    where = "The model of big, all labels, seed 0, which validation prefers, was kept: "
    assert line == f"{where}decero push {best.folder}/model NAME/MODEL"
    note_seeds(plan, verdict)
    compared = json.loads((best.folder / "result.json").read_text())["compared"]
    assert compared == {"seeds": [0, 1], "by": "validation", "metric": "accuracy", "mean": 0.85, "sd": 0.07}


def test_the_lowest_loss_is_the_best(plan):
    plan.metric = "bits_per_byte"
    finish(
        plan, {name: [s and (1 - s[0], s[1] and 1 - s[1]) for s in all] for name, all in SCORES.items()}, plan.metric
    )
    assert (best_run(plan).contender, best_run(plan).seed) == ("big", 0)
    assert models(plan) == [best_run(plan).folder]


def test_without_validation_the_first_good_seed_is_kept(plan):
    scores = {name: [s and (s[0], None) for s in reversed(all)] for name, all in SCORES.items()}
    finish(plan, scores)
    best = best_run(plan)
    assert (best.contender, best.seed) == ("big", 1)
    assert models(plan) == [best.folder]
    assert preferred_seed(plan, "big")[1] is False
    [line] = push_lines(plan, SimpleNamespace(unit="labels"))
    assert "seed 1, the first one, was kept" in line


def test_a_baseline_that_wins_leaves_no_model(plan):
    finish(plan, SCORES | {"words": [(0.99, None)] * 3})
    assert best_run(plan) is None
    assert models(plan) == []
    assert push_lines(plan, None) == ["The best contender is a simple baseline, which has no model to push."]


def test_a_model_that_is_kept_for_another_reason_stays(plan):
    plan.runs[0] = replace(plan.runs[0], keep_model=True)  # a teacher
    for run in plan.runs:
        do(run, SCORES[run.contender][run.seed])
        drop_others(plan)
    assert models(plan) == [plan.runs[0].folder, best_run(plan).folder]


def test_folds_keep_no_model_and_a_suite_says_nothing(plan):
    plan.runs = [replace(run, candidate=False) for run in plan.runs]
    assert push_lines(plan, None) == []
    plan.comparison.folds = 5
    assert push_lines(plan, None)[0].startswith("A cross-validation keeps no model.")
