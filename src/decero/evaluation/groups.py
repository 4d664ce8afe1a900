"""Score groups of examples apart, each with its interval: by the length of a dialogue, by language."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from decero.evaluation.statistics import wilson
from decero.evaluation.text_metrics import TEXT_METRICS, answer_examples, sufficient_statistics

FOUND = "answer_found"


def grouped_metrics(
    kind: str, hypotheses: Sequence[str], references: Sequence[str], groups: Sequence[Any],
    answers: Sequence[str] | None = None, tokenize: str = "auto", seed: int = 0,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return group -> {examples, metric -> [value, low, high]} for TEXT_METRICS[kind], groups in their own order.

    low, high: the ends of the 95 % interval over test examples. Shares of right answers have Wilson's interval (1927),
    which is also good near 0 and 1; other metrics have the middle 95 % of 1,000 resamples.
    answers: the words that a right answer contains; adds the metric `answer_found`. A missing group is the group "".
    """
    names = ["" if group is None else group for group in groups]
    order = sorted(set(names), key=lambda name: (isinstance(name, str), name))
    found = {}
    for group in order:
        rows = [n for n, name in enumerate(names) if name == group]
        texts = [hypotheses[n] for n in rows], [references[n] for n in rows]
        scores: dict[str, Any] = {"examples": len(rows)}
        for metric in TEXT_METRICS[kind]:
            values_NK, score = sufficient_statistics(metric, *texts, tokenize)
            interval = wilson(values_NK[:, 0]) if metric == "exact_match" else _resampled(values_NK, score, seed)
            scores[metric] = [score(values_NK.sum(axis=0)), *interval]
        if answers is not None:
            right_N = answer_examples(texts[0], [answers[n] for n in rows])
            scores[FOUND] = [float(right_N.mean()), *wilson(right_N)]
        found[str(group)] = scores
    return found


def _resampled(values_NK: np.ndarray, score: Callable[[np.ndarray], float], seed: int) -> tuple[float, float]:
    N, generator = len(values_NK), np.random.default_rng(seed)
    draws = (generator.multinomial(N, np.full(N, 1 / N)).astype(np.float64) @ values_NK for _ in range(1000))
    low, high = np.quantile([score(sum_K) for sum_K in draws], [0.025, 0.975])
    return float(low), float(high)


def group_lines(groups: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Write `grouped_metrics` of several parts: a line a group."""
    lines = []
    for name, found in groups.items():
        for group, scores in found.items():
            written = (f"{m} {v[0]:.3f} ({v[1]:.3f} to {v[2]:.3f})" for m, v in scores.items() if m != "examples")
            lines.append(f"{name} {group}: {', '.join(written)}; {scores['examples']:,} examples")
    return lines
