"""Scores of each label over seeds, and their heat map."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from decero.evaluation.confusion import MOST_LABELS, heat_map, label_tables, mean_scores
from decero.evaluation.per_class import per_class

NAMES = ["no", "$maybe$", "", "never"]
VERDICT = SimpleNamespace(contenders=("ours", "other"), budgets=(25, None), unit="labels")


def answers(seed, labels=4):
    draw = np.random.default_rng(seed)
    right = np.random.default_rng(9).integers(0, labels - 1, 53)  # the last label does not occur
    return np.where(draw.random(53) < 0.6, right, draw.integers(0, labels, 53)), right


def test_scores_are_means_over_seeds_in_the_order_of_the_labels():
    seeds = [answers(seed) for seed in range(3)]
    found = [per_class("single_label_classification", *each, NAMES) for each in seeds]
    scores = mean_scores("ours", 25, found)
    f1 = np.mean(
        [f1_score(right, said, labels=range(4), average=None, zero_division=0) for said, right in seeds], axis=0
    )
    assert [each["f1"] for each in scores.scores.values()] == pytest.approx(f1)
    assert scores.confusion == pytest.approx(
        np.mean([confusion_matrix(right, said, labels=range(4)) for said, right in seeds], axis=0)
    )
    (table,) = label_tables(VERDICT, [scores])
    assert [row["label"] for row in table["rows"]] == NAMES
    assert table["rows"][0]["cells"][0][0] == f"{100 * f1[0]:.1f}"
    assert table["title"] == "With 25 labels"
    more = per_class("single_label_classification", *seeds[0], [*NAMES[:3], "new"])
    other = mean_scores("other", None, [found[0], more])
    assert list(other.scores) == [*NAMES, "new"], "a label that only one seed knows"
    assert other.confusion.sum() == pytest.approx(53)
    figure = heat_map(VERDICT, [scores, other])
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["ours\n25 labels", "other\nall labels"]
    assert max(shown[0].images[0].get_array().sum(axis=1)) == pytest.approx(1)


def test_no_heat_map_of_several_labels_at_once_or_of_very_many():
    flags = np.random.default_rng(0).integers(0, 2, (31, 4))
    scores = mean_scores("ours", None, [per_class("multi_label_classification", flags, flags, NAMES)])
    assert scores.confusion is None
    assert heat_map(VERDICT, [scores]) is None
    assert label_tables(VERDICT, [scores])[0]["rows"][1]["cells"][0][0] == "100.0"
    names = [str(number) for number in range(MOST_LABELS + 1)]
    many = per_class("single_label_classification", *answers(0, len(names)), names)
    assert heat_map(VERDICT, [mean_scores("ours", None, [many])]) is None
