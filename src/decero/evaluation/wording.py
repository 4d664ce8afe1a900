"""Write a verdict in words: numbers with units, and sentences. The classes are in `verdict`, which imports this."""

import math

from decero.evaluation.answer_metrics import ANSWER_METRICS
from decero.evaluation.metrics import HIGHER_IS_BETTER
from decero.evaluation.text_metrics import TEXT_METRICS
from decero.formatting import duration

PERCENT = (
    "accuracy",
    "f1_macro",
    "f1_micro",
    "exact_match",
    "label_accuracy",
    "token_f1",
    "eval_accuracy",
    "detection_accuracy",
    "accuracy_normalized",
    *ANSWER_METRICS,
)
HUNDRED = (*TEXT_METRICS["translation"], *TEXT_METRICS["summarization"])  # they go from 0 to 100 by themselves
MEANS = (
    "accuracy",
    "accuracy_normalized",
    "label_accuracy",
    "mse",
    "mae",
    *TEXT_METRICS["summarization"],
    "f1",
    *TEXT_METRICS["text"],
)
DECIMALS = ("bits_per_byte", "loss", "eval_loss", "detection_loss")  # a hundredth of them is much
REGRESSION = ("mse", "mae", "pearson", "spearman")
TITLES = {
    "accuracy": "accuracy", "f1_macro": "macro F1", "f1_micro": "micro F1", "exact_match": "exact match",
    "label_accuracy": "label accuracy", "matthews_correlation": "Matthews correlation", "mse": "mean squared error",
    "mae": "mean absolute error", "pearson": "Pearson correlation", "spearman": "Spearman correlation",
    "bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum", "token_f1": "F1 of words", "bits_per_byte": "bits a byte", "loss": "loss",
    "perplexity": "perplexity", "eval_loss": "evaluation loss", "eval_accuracy": "token accuracy",
    "accuracy_normalized": "accuracy by nats a byte",
    "detection_loss": "loss of the discriminator", "detection_accuracy": "accuracy of the discriminator",
    "f1": "F1", "has_answer_f1": "F1 where there is an answer", "no_answer_accuracy": "accuracy where there is none",
    "has_answer_exact_match": "exact match where there is an answer",
}  # fmt: skip


def base(metric: str) -> str:
    """`bleu` of `help_bleu`: a metric of one of several data sets carries the set's name."""
    if metric in TITLES:
        return metric
    return next((name for name in sorted(TITLES, key=len, reverse=True) if metric.endswith(f"_{name}")), metric)


def name_of(metric: str) -> str:
    """`accuracy`, `BLEU of help`."""
    known = base(metric)
    part = f" of {metric.removesuffix(f'_{known}')}" if known != metric else ""
    return TITLES.get(known, metric) + part


def title(metric: str) -> str:
    """Return the title of a metric, such as `accuracy (%)` or `Pearson correlation`."""
    return name_of(metric) + (" (%)" if base(metric) in PERCENT else "")


def scale(metric: str) -> int:
    return 100 if base(metric) in PERCENT else 1


def is_mean_metric(metric: str) -> bool:
    """Whether a metric is the mean of one value an example."""
    return base(metric) in MEANS


def value(metric: str, number: float) -> str:
    """Format a value of a metric: `87.1` for an accuracy of 0.871; other metrics keep their scale."""
    if math.isnan(number):
        return "–"
    if base(metric) in PERCENT + HUNDRED:
        return f"{scale(metric) * number:.1f}"
    if base(metric) in DECIMALS:
        return minus(f"{number:.3f}")
    return minus(f"{number:.3g}" if abs(number) >= 1 else f"{number:.3f}")


def spread(metric: str, cell) -> str:
    """Format mean and spread of a cell: `87.1 ± 1.2`; for one seed, only the mean."""
    mean = value(metric, cell.mean)
    return mean if math.isnan(cell.sd) else f"{mean} ± {value(metric, cell.sd)}"


def minus(text: str) -> str:
    return text.replace("-", "−")


def labels(budget: int | None, unit: str = "labels") -> str:
    return f"all {unit}" if budget is None else f"1 {unit[:-1]}" if budget == 1 else f"{budget:,} {unit}"


def where(contender: str, budget: int | None, unit: str) -> str:
    """`ours, 25 labels`; without a unit there are no budgets to name."""
    return f"{contender}, {budget or 'all'} {unit}" if unit else contender


def p_value(p: float) -> str:
    return "–" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def difference(
    metric: str, amount: float, low: float, high: float, *, signed: bool = False, proxy: bool = False
) -> str:
    """Format a difference with its interval, in the unit of the metric; with proxy, of the per-example scores."""
    points = metric not in REGRESSION if proxy else base(metric) in PERCENT + HUNDRED
    times = 1 if base(metric) in HUNDRED else 100

    def number(x: float) -> str:
        form = ".1f" if points else ".3f" if base(metric) in DECIMALS else ".3g"
        return minus(f"{times * x if points else x:{form}}")

    sign = "+" if signed and amount > 0 else ""
    return f"{sign}{number(amount)}{' points' if points else ''} [{number(low)}, {number(high)}]"


def quantity(verdict) -> str:
    """Name what the per-example scores measure, if that is not the metric itself."""
    metric = verdict.metric
    if not verdict.proxy:
        return ""
    return " less squared error" if metric in REGRESSION else " more right answers per example"


def sentence(verdict, comparison) -> str:
    """Write one comparison as a plain sentence, also when the reference loses."""
    c, metric, ours = comparison, verdict.metric, verdict.reference
    unit, other = verdict.unit, quantity(verdict)
    where = f"With all {unit}, " if c.budget is None else f"With {labels(c.budget, unit)}, "
    where = where if unit else ""
    if c.reason:
        return f"{where}{ours} and {c.other} are not comparable: {c.reason}."

    def named(name: str) -> str:
        return f"{name} ({spread(metric, verdict.cell(name, c.budget))})"

    if c.winner:
        sign = 1 if c.difference > 0 else -1
        low, high = sorted((sign * c.low, sign * c.high))
        gap = difference(metric, sign * c.difference, low, high, proxy=verdict.proxy)
        verb = "beats" if c.winner == ours else "loses to"
        tail = f": {gap}{other} for {c.winner}" if other else f" by {gap}"
        text = f"{where}{named(ours)} {verb} {named(c.other)}{tail}"
    else:
        gap = difference(metric, c.difference, c.low, c.high, signed=True, proxy=verdict.proxy)
        shown = f"no difference is shown between {named(ours)} and {named(c.other)}: {gap}{other}"
        text = f"{where}{shown}" if where else f"N{shown[1:]}"
    text += f", {p_value(c.p_adjusted)}"
    if c.winner and other:
        gain = verdict.cell(ours, c.budget).mean - verdict.cell(c.other, c.budget).mean
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
    if planned == 1:
        return " (one seed: the interval does not include the variation between seeds)"
    once = [name for name, cell in zip((verdict.reference, c.other), cells, strict=True) if cell.n_pretrainings == 1]
    return f" (one pretraining of {' and of '.join(once)}: another one may give another result)" if once else ""


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
        number = max(cell.n_pretrainings for cell in verdict.cells if cell.contender == contender)
        what = (
            f"{number} pretrainings of {duration(upfront)} each"
            if number > 1
            else f"one pretraining of {duration(upfront)}"
        )
        once = f", after {what}" if upfront else ""
        costs.append(f"{contender} {duration(mean)}{once}")
    return f"Median time of a run: {'; '.join(costs)}."


def times(verdict, contender: str) -> tuple[float, float]:
    """Return the median time of its runs, averaged over label budgets (NaN for none), and that of one pretraining."""
    cells = [cell for cell in verdict.cells if cell.contender == contender]
    medians = [cell.wall_time_s for cell in cells if cell.n_ok]
    return sum(medians) / len(medians) if medians else math.nan, max(cell.upfront_wall_time_s for cell in cells)
