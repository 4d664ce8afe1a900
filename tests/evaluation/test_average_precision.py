"""Average precision is that of a program of our own that knows nothing of COCO's; pictures nearly add up to it."""

import importlib.util
import sys
from typing import NamedTuple

import numpy as np
import pytest

from decero.errors import UserError
from decero.evaluation import ScoredRun, judge
from decero.evaluation.average_precision import OF_METRIC, THRESHOLDS, average_precision, box_statistics, right_boxes

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="needs decero[vision]")


class Boxes(NamedTuple):
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None


def case(seed, most=6):
    """Pictures of random boxes; predictions are some of them, moved, and some more."""
    draw = np.random.default_rng(seed)
    said, true, classes = [], [], int(draw.integers(1, 4))
    for _ in range(int(draw.integers(1, 5))):
        count = int(draw.integers(0, most))
        low = draw.uniform(0, 60, (count, 2))
        boxes, kinds = (
            np.concatenate([low, low + draw.uniform(5, 40, (count, 2))], axis=1),
            draw.integers(0, classes, count),
        )
        true.append(Boxes(boxes, kinds))
        kept = draw.random(count) < 0.8
        moved = boxes[kept] + draw.normal(0, 3, (kept.sum(), 4))
        wrong = draw.uniform(0, 60, (int(draw.integers(0, 3)), 2))
        found = np.concatenate([moved, np.concatenate([wrong, wrong + 20], axis=1)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        said.append(Boxes(found, draw.integers(0, classes, len(found)), draw.permutation(1000)[: len(found)] / 1000))
        said[-1].classes[: kept.sum()] = np.where(
            draw.random(kept.sum()) < 0.8, kinds[kept], said[-1].classes[: kept.sum()]
        )
    return said, true, classes


def slow_precision(said, true, classes, threshold):
    """The mean over classes of the mean of the best precision at a recall of at least 0, 0.01 ... 1.

    Recalls are compared as COCO does, without tolerance: 7 of 10 are less than the recall 0.7000000000000001.
    """
    found = []
    for kind in range(classes):
        objects = sum(int((each.classes == kind).sum()) for each in true)
        if not objects:
            continue
        ranked = []
        for picture, each in enumerate(said):
            own = [n for n in range(len(each.classes)) if each.classes[n] == kind]
            ranked += [(-each.scores[n], picture, n) for n in own]
        taken, flags = set(), []
        for _, picture, n in sorted(ranked):
            best, place = threshold, None
            for m in np.flatnonzero(true[picture].classes == kind):
                a, b = said[picture].boxes[n], true[picture].boxes[m]
                width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                shared = max(0, width) * max(0, height)
                both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
                if (picture, m) not in taken and shared / both >= best:
                    best, place = shared / both, m
            taken.add((picture, place))
            flags.append(place is not None)
        points = [(sum(flags[:k]) / objects, sum(flags[:k]) / k) for k in range(1, len(flags) + 1)]
        best = [max([p for r, p in points if r >= recall], default=0.0) for recall in np.linspace(0, 1, 101)]
        found.append(np.mean(best))
    return float(np.mean(found)) if found else 0.0


@pytest.mark.parametrize(("seeds", "of_map"), [(40, 20), pytest.param(1000, 1000, marks=pytest.mark.slow)])
def test_average_precision_is_that_of_a_slow_program(seeds, of_map):
    differs = []
    for seed in range(seeds):
        said, true, classes = case(seed)
        found = average_precision(said, true, classes)
        for name, threshold in (("map_50", 0.5), ("map_75", 0.75)):
            differs.append(abs(found[name] - slow_precision(said, true, classes, threshold)))
        if seed < of_map:
            wanted = np.mean([slow_precision(said, true, classes, t) for t in THRESHOLDS])
            differs.append(abs(found["map"] - wanted))
    assert max(differs) < 1e-9


def test_pictures_nearly_add_up_to_the_average_precision():
    many = [case(seed) for seed in range(30)]
    said, true = ([each for one in many for each in one[side]] for side in (0, 1))
    for metric in OF_METRIC:
        rows, score = box_statistics(metric, said, true, 3)
        assert len(rows) == len(true)
        assert score(rows.sum(axis=0)) == pytest.approx(average_precision(said, true, 3)[metric], abs=0.01)


def test_two_detectors_are_judged():
    """Their boxes fall into different bins of scores."""
    many = [case(seed) for seed in range(30)]
    true = [each for one in many for each in one[1]]
    runs = []
    for name, shift in (("ours", 1.0), ("theirs", 0.7)):
        for seed in (0, 1):
            said = [b._replace(scores=b.scores * (shift - 0.01 * seed)) for one in many for b in one[0]]
            rows, score = box_statistics("map_50", said, true, 3)
            runs.append(
                ScoredRun(name, None, seed, "ok", metrics={"map_50": score(rows.sum(axis=0, dtype=float))}, scores=rows)
            )
    found = judge(runs, metric="map_50", reference="ours", score_of_sum=score, n_resamples=50).comparisons[0]
    means = [np.mean([run.metrics["map_50"] for run in runs if run.contender == name]) for name in ("ours", "theirs")]
    assert found.difference == pytest.approx(means[0] - means[1])
    assert found.low <= found.difference <= found.high


def test_nothing_found_and_nothing_there_score_zero(monkeypatch):
    none = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    one = Boxes(np.array([[0.0, 0, 5, 5]]), np.array([0]), np.array([0.9]))
    assert average_precision([none], [one], 1) == average_precision([one], [none], 1) == dict.fromkeys(OF_METRIC, 0.0)
    assert average_precision([one], [one], 1) == dict.fromkeys(OF_METRIC, pytest.approx(1.0))
    assert right_boxes(one, none, THRESHOLDS).sum() == 0
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'decero\[vision\]'"):
        average_precision([one], [one], 1)
