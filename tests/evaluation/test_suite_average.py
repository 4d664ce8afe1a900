"""Averages over tasks: exact means, pairing, and intervals that cover."""

import numpy as np
import pytest

from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import class_statistics
from decero.evaluation.suite_average import Resampled, TaskRuns


def right(share, size, generator):
    """Rows of an accuracy: each example is right with this probability."""
    values = (generator.random(size) < share).astype(np.float64)
    return np.stack([values, np.ones(size)], axis=1)


def suite(generator, shares, sizes=(83, 211, 47), seeds=3, spread=0.0):
    """Accuracies of contenders; `spread` is the luck of a training run."""
    tasks = []
    for number, size in enumerate(sizes):
        rows = {
            name: {s: right(share + spread * generator.standard_normal(), size, generator) for s in range(seeds)}
            for name, share in shares.items()
        }
        tasks.append(TaskRuns(f"task {number}", rows, ratio))
    return tasks


def test_an_average_is_the_mean_over_tasks_and_not_over_examples():
    tasks = suite(np.random.default_rng(0), {"ours": 0.7, "theirs": 0.6})
    found = Resampled(tasks, n_resamples=200)
    means = {
        name: 100 * np.mean([np.mean([rows[:, 0].mean() for rows in task.rows[name].values()]) for task in tasks])
        for name in ("ours", "theirs")
    }
    assert found.average("ours").value == pytest.approx(means["ours"])
    gap = found.difference("theirs", "ours")
    assert gap.value == pytest.approx(means["theirs"] - means["ours"])
    assert gap.low < gap.value < gap.high
    back = found.difference("ours", "theirs")
    assert (back.low, back.high) == pytest.approx((-gap.high, -gap.low))


def test_equal_contenders_differ_by_nothing_and_pairing_helps():
    tasks = suite(np.random.default_rng(1), {"ours": 0.7})
    twin = [TaskRuns(t.name, {"ours": t.rows["ours"], "twin": t.rows["ours"]}, t.score) for t in tasks]
    gap = Resampled(twin, n_resamples=200).difference("twin", "ours")
    assert (gap.value, gap.low, gap.high, gap.p) == (0, 0, 0, 1)
    average = Resampled(twin, n_resamples=200).average("ours")
    assert average.high - average.low > 1


def test_a_few_examples_that_are_all_alike_prove_nothing():
    ones, zeros = np.ones((3, 2)), np.array([[0.0, 1.0]] * 3)
    task = TaskRuns("tiny", {"ours": {0: ones}, "theirs": {0: zeros}}, ratio)
    gap = Resampled([task], n_resamples=50).difference("ours", "theirs")
    assert (gap.value, gap.p) == (100.0, 0.25)  # as a permutation test: two of eight signs are so far from zero
    assert gap.low < 50 < gap.high
    assert Resampled([task] * 4, n_resamples=50).difference("ours", "theirs").p == 2.0**-11


def test_a_contender_without_a_task_has_no_average():
    tasks = suite(np.random.default_rng(2), {"ours": 0.7, "words": 0.6})
    tasks[1] = TaskRuns("no words", {"ours": tasks[1].rows["ours"]}, ratio)
    found = Resampled(tasks, n_resamples=200)
    assert found.average("words") is None
    assert found.difference("words", "ours").tasks == 2
    assert found.difference("nobody", "ours") is None


def test_the_interval_covers_what_it_should():
    """150 suites of three tasks, with luck of test examples and of training runs."""
    covered = 0
    for number in range(150):
        tasks = suite(np.random.default_rng([3, number]), {"ours": 0.65, "theirs": 0.6}, seeds=3, spread=0.05)
        gap = Resampled(tasks, seed=number, n_resamples=200).difference("ours", "theirs")
        covered += gap.low <= 5 <= gap.high
    assert 0.9 * 150 <= covered <= 150 * 0.995


def test_a_metric_that_is_no_mean_is_computed_from_each_resample():
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 90)
    said = np.where(generator.random(90) < 0.7, labels, generator.integers(0, 3, 90))
    rows, score = class_statistics("single_label_classification", "f1_macro", said, labels, 3)
    found = Resampled([TaskRuns("t", {"ours": {0: rows}}, score)], n_resamples=100).average("ours")
    assert found.value == pytest.approx(100 * score(rows.sum(axis=0)))
    assert found.low < found.value < found.high


def test_seeds_of_one_pretraining_count_as_one_training():
    generator, started = np.random.default_rng(5), {"ours": {0: "a", 1: "a", 2: "b", 3: "b"}}
    rows = [[right(share, 300, generator) for share in (0.8, 0.8, 0.6, 0.6)] for _ in range(5)]
    tasks = [TaskRuns(f"task {n}", {"ours": dict(enumerate(own))}, ratio) for n, own in enumerate(rows)]
    shared = [TaskRuns(t.name, t.rows, t.score, pretraining=started) for t in tasks]
    alone, clustered = (Resampled(each, n_resamples=500).average("ours") for each in (tasks, shared))
    assert clustered.value == pytest.approx(alone.value)
    part = Resampled(shared, n_resamples=50)._part(0, "ours", None)
    assert part.observed.shape == (2,)
    assert clustered.high - clustered.low > alone.high - alone.low, "a pretraining is drawn once for all tasks"
