"""Write a verdict in words: numbers with units, and sentences. The classes are in `verdict`, which imports this."""

import math

from decero.evaluation.metrics import HIGHER_IS_BETTER
from decero.formatting import duration

PERCENT = ("accuracy", "f1_macro", "f1_micro", "exact_match", "label_accuracy")
REGRESSION = ("mse", "mae", "pearson", "spearman")
TITLES = {
    "accuracy": "accuracy", "f1_macro": "macro F1", "f1_micro": "micro F1", "exact_match": "exact match",
    "label_accuracy": "label accuracy", "matthews_correlation": "Matthews correlation", "mse": "mean squared error",
    "mae": "mean absolute error", "pearson": "Pearson correlation", "spearman": "Spearman correlation",
}  # fmt: skip


def title(metric: str) -> str:
    """Return the title of a metric, such as `accuracy (%)` or `Pearson correlation`."""
    return TITLES.get(metric, metric) + (" (%)" if metric in PERCENT else "")


def scale(metric: str) -> int:
    return 100 if metric in PERCENT else 1


def value(metric: str, number: float) -> str:
    """Format a value of a metric: `87.1` for an accuracy of 0.871; other metrics keep their scale."""
    if math.isnan(number):
        return "–"
    return (
        f"{100 * number:.1f}" if metric in PERCENT else minus(f"{number:.3g}" if abs(number) >= 1 else f"{number:.3f}")
    )


def spread(metric: str, cell) -> str:
    """Format mean and spread of a cell: `87.1 ± 1.2`; for one seed, only the mean."""
    mean = value(metric, cell.mean)
    return mean if math.isnan(cell.sd) else f"{mean} ± {value(metric, cell.sd)}"


def minus(text: str) -> str:
    return text.replace("-", "−")


def labels(budget: int | None) -> str:
    return "all labels" if budget is None else "1 label" if budget == 1 else f"{budget:,} labels"


def p_value(p: float) -> str:
    return "–" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def difference(metric: str, amount: float, low: float, high: float, *, signed: bool = False) -> str:
    """Format a difference of per-example scores in their unit, with its interval."""
    points = metric not in REGRESSION

    def number(x: float) -> str:
        return minus(f"{100 * x:.1f}" if points else f"{x:.3g}")

    sign = "+" if signed and amount > 0 else ""
    return f"{sign}{number(amount)}{' points' if points else ''} [{number(low)}, {number(high)}]"


def quantity(metric: str) -> str:
    """Name what the per-example scores measure, if that is not the metric itself."""
    if metric in ("accuracy", "label_accuracy", "mse"):
        return ""
    return " less squared error" if metric in REGRESSION else " more right answers per example"


def sentence(verdict, comparison) -> str:
    """Write one comparison as a plain sentence, also when the reference loses."""
    c, metric, reference = comparison, verdict.metric, verdict.reference
    budget = "With all labels" if c.budget is None else f"With {labels(c.budget)}"
    if c.reason:
        return f"{budget}, {reference} and {c.other} are not comparable: {c.reason}."

    def named(name: str) -> str:
        return f"{name} ({spread(metric, verdict.cell(name, c.budget))})"

    if c.winner:
        sign = 1 if c.winner == reference else -1
        low, high = sorted((sign * c.low, sign * c.high))
        gap = difference(metric, sign * c.difference, low, high)
        verb = "beats" if c.winner == reference else "loses to"
        tail = f": {gap}{quantity(metric)} for {c.winner}" if quantity(metric) else f" by {gap}"
        text = f"{budget}, {named(reference)} {verb} {named(c.other)}{tail}"
    else:
        gap = difference(metric, c.difference, c.low, c.high, signed=True)
        pair = f"{named(reference)} and {named(c.other)}"
        text = f"{budget}, no difference is shown between {pair}: {gap}{quantity(metric)}"
    text += f", {p_value(c.p_adjusted)}"
    if c.winner and quantity(metric):
        gain = verdict.cell(reference, c.budget).mean - verdict.cell(c.other, c.budget).mean
        if gain * c.difference * (1 if HIGHER_IS_BETTER.get(metric, True) else -1) < 0:
            text += f"; but {TITLES.get(metric, metric)} points the other way"
    if not c.winner and c.p_adjusted < 0.05:
        text += "; these trained models differ, but the random seed of training could explain it"
    return f"{text}{_seeds(verdict, c)}."


def _seeds(verdict, c) -> str:
    cells = [verdict.cell(name, c.budget) for name in (verdict.reference, c.other)]
    planned = max(cell.n_ok + cell.n_failed for cell in cells)
    if len(c.seeds) < planned:
        return f" (paired over {len(c.seeds)} of {planned} seeds)"
    return " (one seed: the interval does not include the variation between seeds)" if planned == 1 else ""


def summary(verdict) -> list[str]:
    """Write one line per contender that is compared at several label budgets."""
    lines = []
    for other in verdict.contenders:
        comparisons = [c for c in verdict.comparisons if c.other == other]
        counts = {
            "better": sum(c.winner == verdict.reference for c in comparisons),
            "worse": sum(c.winner == other for c in comparisons),
            "no difference shown": sum(c.word == "no difference shown" for c in comparisons),
            "not comparable": sum(c.word == "not comparable" for c in comparisons),
        }
        parts = [f"{word} at {n}" for word, n in counts.items() if n]
        if len(comparisons) > 1:
            lines.append(f"{verdict.reference} against {other}, {len(comparisons)} label budgets: {', '.join(parts)}.")
    return lines


def cost(verdict) -> str:
    costs = []
    for contender in verdict.contenders:
        mean, upfront = times(verdict, contender)
        once = f", after one pretraining of {duration(upfront)}" if upfront else ""
        costs.append(f"{contender} {duration(mean)}{once}")
    return f"A fine-tuning run takes on average: {'; '.join(costs)}."


def times(verdict, contender: str) -> tuple[float, float]:
    """Return the mean time of its successful runs (NaN for none) and its pretraining time, in seconds."""
    cells = [cell for cell in verdict.cells if cell.contender == contender]
    n_ok = sum(cell.n_ok for cell in cells)
    total = sum(cell.wall_time_s * cell.n_ok for cell in cells if cell.n_ok)
    return total / n_ok if n_ok else math.nan, max(cell.upfront_wall_time_s for cell in cells)
