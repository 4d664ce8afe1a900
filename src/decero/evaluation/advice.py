"""What a reader should do: which contender to ship, and which results may change with more training."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np

from decero.evaluation import wording
from decero.formatting import count, duration

FALLING = 0.05  # of the loss at the start: what it still loses in the last fifth of the steps


def advise(verdict, runs: Sequence, judged_against: Callable[[str], object]) -> tuple[str, ...]:
    """Return sentences: what to ship, then which contenders may have been trained too little.

    judged_against: contender -> the verdict with that contender as the reference.
    """
    return (*_recommendations(verdict, judged_against), *_trained_too_little(verdict, runs))


def _recommendations(verdict, judged_against) -> list[str]:
    """Return a sentence per stretch of label budgets with the same best contender."""
    best = {}
    for budget in verdict.budgets:
        means = {cell.contender: cell.mean for cell in verdict.cells if cell.budget == budget}
        if sum(not np.isnan(mean) for mean in means.values()) > 1:
            best[budget] = best_of(means, verdict.higher_is_better)
    if not best:
        return ["Nothing to recommend: no two contenders have results that can be compared."]
    against = {name: judged_against(name) for name in dict.fromkeys(best.values())}
    stretches = [(name, list(budgets)) for name, budgets in groupby(best, key=lambda budget: best[budget])]
    return [_recommendation(verdict, against[name], budgets, len(stretches) > 1) for name, budgets in stretches]


def best_of(means: Mapping[str, float], higher_is_better: bool) -> str | None:
    """Return the contender with the best mean, the first one of equals; None where all are NaN."""
    known = {name: mean for name, mean in means.items() if not np.isnan(mean)}
    return (max if higher_is_better else min)(known, key=known.__getitem__) if known else None


def _recommendation(verdict, against, budgets, several: bool) -> str:
    """against: the verdict with the best contender as the reference."""
    name, metric = against.reference, verdict.metric
    where = f" with {_list([wording.labels(b, verdict.unit) for b in budgets])}" if several else ""
    means = _list([wording.value(metric, verdict.cell(name, budget).mean) for budget in budgets])
    compared = [c for c in against.comparisons if c.budget in budgets and not c.reason]
    others = list(dict.fromkeys(c.other for c in compared))
    # the table compares with the reference of the comparison: its p values are adjusted for other comparisons than here
    said = {(verdict.reference, c.budget): c.winner for c in verdict.comparisons if c.other == name}
    won: dict[str, list[int | None]] = {other: [] for other in others}
    for c in compared:
        if said.get((c.other, c.budget), c.winner) == name:
            won[c.other].append(c.budget)
    beaten = [other for other in others if len(won[other]) == sum(c.other == other for c in compared)]
    never = [_beside(verdict, name, other) for other in others if not won[other]]
    text = f"Ship {name}{where}: it has the best {verdict.split} {wording.title(metric)}, {means}"
    if beaten:
        text += f". It is shown to be better than {_list(beaten)}"
    for other in others:
        if won[other] and other not in beaten:
            only = _list([wording.labels(b, verdict.unit) for b in won[other]])
            text += f". It is shown to be better than {_beside(verdict, name, other)} only with {only}"
    if never:
        at_none = "At none of these budgets is it" if several else "At no budget is it"
        text += f". {at_none if len(budgets) > 1 else 'It is not'} shown to be better than {_list(never)}"
    return f"{text}."


def _beside(verdict, name: str, other: str) -> str:
    """Name the other contender, and what it needs if that is less than half."""
    size, smaller = (max(c.num_parameters for c in verdict.cells if c.contender == n) for n in (name, other))
    time, shorter = (wording.times(verdict, n)[0] for n in (name, other))
    saved = [f"{count(smaller)} parameters instead of {count(size)}"] if 0 < smaller < size / 2 else []
    saved += [f"{duration(shorter)} a run instead of {duration(time)}"] if shorter < time / 2 else []
    return f"{other} ({', '.join(saved)})" if saved else other


def _trained_too_little(verdict, runs) -> list[str]:
    """Warn of contenders that saw less than an epoch, and of those whose loss still fell."""
    short: dict[str, list[str]] = {}
    falling: dict[str, list[str]] = {}
    for contender in verdict.contenders:
        for budget in verdict.budgets:
            curves = [r.curve for r in runs if (r.contender, r.budget) == (contender, budget) and r.curve]
            where = f" with {wording.labels(budget, verdict.unit)}" if verdict.unit else ""
            epochs = [max(line.get("epoch", 0.0) for line in curve) for curve in curves]
            if epochs and 0 < (least := float(np.median(epochs))) < 0.995:
                short.setdefault(contender, []).append(f"{100 * least:.2g} %{where}")
            if curves and np.median([_still_falls(curve) for curve in curves]) > FALLING:
                falling.setdefault(contender, []).append(where.removeprefix(" "))
    alike: dict[str, list[str]] = {}
    for name, parts in short.items():
        alike.setdefault(_list(parts), []).append(name)
    found = [
        f"{_list(names)} saw less than one epoch of {'its' if len(names) == 1 else 'their'} examples: {parts}."
        for parts, names in alike.items()
    ]
    if falling:
        names = [f"{name} ({_list(parts)})" if verdict.unit else name for name, parts in falling.items()]
        found.append(f"The loss still fell at the end: {'; '.join(names)}. More steps may give better results.")
    return found


def _still_falls(curve: Sequence[dict]) -> float:
    """Return how much of its first loss a run lost between the fourth and the last fifth of its logged steps."""
    losses = [line["loss"] for line in curve if "loss" in line]
    if len(losses) < 10:  # too few points to tell
        return 0.0
    fifths = [float(np.mean(part)) for part in np.array_split(losses, 5)]
    return (fifths[3] - fifths[4]) / fifths[0] if fifths[0] > 0 else 0.0


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
