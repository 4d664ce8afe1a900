"""Show which labels each contender gets right, and what it takes the others for: a table and a heat map."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from decero.evaluation import wording

MOST_LABELS, MOST_NUMBERS = 40, 12  # with more labels: no heat map; no numbers in it


@dataclass(frozen=True)
class LabelScores:
    """The scores of each label for one contender at one label budget, means over its seeds.

    scores: name -> precision, recall, f1, support. confusion: counts (labels, labels), rows are the right labels; None
    where an example may have several labels.
    """

    contender: str
    budget: int | None
    scores: dict[str, dict[str, float]]
    confusion: np.ndarray | None = None


def mean_scores(contender: str, budget: int | None, found: Sequence[dict[str, Any]]) -> LabelScores:
    """Average what `per_class` found in each seed. Labels that only some seeds have count as 0 in the others."""
    names = list(dict.fromkeys(name for each in found for name in each["per_class"]))
    zero = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    scores = {
        name: {key: float(np.mean([each["per_class"].get(name, zero)[key] for each in found])) for key in zero}
        for name in names
    }
    if not all("confusion_matrix" in each for each in found):
        return LabelScores(contender, budget, scores)
    confusion = np.zeros((len(names), len(names)))
    for each in found:
        places = np.ix_(*[[names.index(name) for name in each["per_class"]]] * 2)
        confusion[places] += np.asarray(each["confusion_matrix"]) / len(found)
    return LabelScores(contender, budget, scores, confusion)


def label_tables(verdict, labels: Sequence[LabelScores]) -> list[dict[str, Any]]:
    """Return a table a budget: its title, headers, and rows of (F1, precision / recall) for each contender."""
    tables = []
    for budget in verdict.budgets:
        shown = [each for each in labels if each.budget == budget]
        names = list(dict.fromkeys(name for each in shown for name in each.scores))
        rows = []
        for name in names:
            of_name = [each.scores.get(name) for each in shown]
            support = max(scores["support"] for scores in of_name if scores)
            rows.append({"label": name, "support": f"{support:,.0f}", "cells": [_cell(scores) for scores in of_name]})
        title = f"With {wording.labels(budget, verdict.unit)}" if verdict.unit and len(verdict.budgets) > 1 else ""
        tables += [{"title": title, "contenders": [each.contender for each in shown], "rows": rows}] if shown else []
    return tables


def _cell(scores: dict[str, float] | None) -> tuple[str, str]:
    if scores is None:
        return "–", ""
    return f"{100 * scores['f1']:.1f}", f"{100 * scores['precision']:.1f} / {100 * scores['recall']:.1f}"


def heat_map(verdict, labels: Sequence[LabelScores]) -> Figure | None:
    """Draw a panel a contender and budget: the share of each right label that was answered with each label."""
    shown = [each for each in labels if each.confusion is not None and len(each.scores) <= MOST_LABELS]
    if not shown:
        return None
    budgets = [budget for budget in verdict.budgets if any(each.budget == budget for each in shown)]
    contenders = [name for name in verdict.contenders if any(each.contender == name for each in shown)]
    side = max(1.9, 0.42 * min(max(len(each.scores) for each in shown), 12))
    figure = Figure(figsize=(1.3 + side * len(contenders), 0.9 + (side + 0.5) * len(budgets)), layout="constrained")
    panels = figure.subplots(len(budgets), len(contenders), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for each in shown:
        row, column = budgets.index(each.budget), contenders.index(each.contender)
        _panel(panels[row, column], each, first=column == 0, last=row == len(budgets) - 1)
        budget = f"\n{wording.labels(each.budget, verdict.unit)}" if verdict.unit and len(budgets) > 1 else ""
        panels[row, column].set_title(_plain(each.contender, 22) + budget, fontsize=9)
    figure.supxlabel("answer", fontsize=10)
    figure.supylabel("right label", fontsize=10)
    return figure


def _panel(axes, each: LabelScores, first: bool, last: bool) -> None:
    assert each.confusion is not None
    totals = each.confusion.sum(axis=1, keepdims=True)
    share = np.divide(each.confusion, totals, out=np.zeros_like(each.confusion), where=totals > 0)
    axes.set_axis_on()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    names = [_plain(name, 14) for name in each.scores]
    places = range(len(names)) if len(names) <= MOST_NUMBERS else range(0, len(names), 1 + len(names) // MOST_NUMBERS)
    axes.set_xticks(list(places), [names[i] for i in places] if last else [], rotation=90, fontsize=8)
    axes.set_yticks(list(places), [names[i] for i in places] if first else [], fontsize=8)
    axes.tick_params(length=0)
    for (i, j), value in np.ndenumerate(share) if len(names) <= MOST_NUMBERS else ():
        if value >= 0.005:
            color = "white" if value > 0.55 else "#1c2128"
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=color)


def _plain(name: str, width: int) -> str:
    """Shorten a name, and keep matplotlib from reading text between $ as mathematics."""
    return textwrap.shorten(" ".join(name.split()) or "(empty)", width, placeholder="…").replace("$", r"\$")
