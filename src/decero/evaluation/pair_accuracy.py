"""Accuracy on minimal pairs: how often the acceptable text of a pair is the likelier one."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from decero.evaluation.statistics import independent_size, ratio_interval, wilson

ROUNDING = 1e-6  # of fp32 sums: scores that are closer are equal
SHORT = {  # system -> title of its column
    "accuracy": "accuracy", "accuracy_per_token": "per token", "unigram": "unigram", "fewer_tokens": "fewer tokens",
    "random_weights": "random weights",
}  # fmt: skip


def preferences(good_N, bad_N) -> np.ndarray:
    """Return for each pair 1 where the good text scores higher, 0 where the bad one does, 1/2 for a tie.

    So a system that knows nothing has 50 %, also one that gives all texts the same score.
    """
    good_N, bad_N = np.asarray(good_N, dtype=np.float64), np.asarray(bad_N, dtype=np.float64)
    tied_N = np.isclose(good_N, bad_N, rtol=ROUNDING, atol=0)
    return np.where(tied_N, 0.5, (good_N > bad_N).astype(np.float64))


def accuracy_by(
    groups: Sequence[str], systems: Mapping[str, np.ndarray], contrasts: Sequence[Hashable]
) -> dict[str, dict[str, Any]]:
    """Return group -> {pairs, system -> [accuracy, low, high]}, groups in order of appearance.

    systems: name -> `preferences`, (pairs,), or (S, pairs) of S models, which are averaged. contrasts: what
    distinguishes the texts of each pair, see `contrast_of`.

    low, high: Wilson's 95 % interval over contrasts. A model that likes one word better than another does so in many
    pairs, so pairs of one contrast count as much as their answers differ (`independent_size`). Other templates may give
    other accuracies; the interval does not cover them. That of several models is also over models (`ratio_interval`).
    """
    names, whole = np.asarray(groups, dtype=object), list(contrasts)
    found = {}
    for group in dict.fromkeys(groups):
        chosen = np.flatnonzero(names == group)
        own = [whole[row] for row in chosen]
        scores: dict[str, Any] = {"pairs": len(chosen)}
        for system, values in systems.items():
            if values.ndim == 2:
                scores[system] = ratio_interval(values[:, chosen], np.ones((len(values), len(chosen))), own)
                continue
            size = independent_size(values[chosen], own)
            scores[system] = [float(values[chosen].mean()), *wilson(values[chosen], size=size)]
        found[str(group)] = scores
    return found


def contrast_of(good: Sequence[str], bad: Sequence[str]) -> Hashable:
    """Return the words that only one text of a pair has; where both have the same words, the pair itself."""
    good_words, bad_words = (Counter(word.lower() for word in text) for text in (good, bad))
    only = (good_words - bad_words) + (bad_words - good_words)
    return frozenset(only) or (tuple(good), tuple(bad))


def pair_table(groups: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any] | None = None) -> list[str]:
    """Write the result of `accuracy_by` as a Markdown table in points of 100, a line a group, and one for all pairs."""
    systems = [name for name in next(iter(groups.values())) if name != "pairs"]
    lines = [f"| | pairs | {' | '.join(SHORT[name] for name in systems)} |", "|:--|--:|" + "--:|" * len(systems)]
    for group, found in [*groups.items(), *([("all", whole)] if whole else [])]:
        cells = []
        for name in systems:
            value, low, high = (100 * each for each in found[name])
            interval = f" [{low:.1f}, {high:.1f}]" if name in (systems[0], "random_weights") else ""
            cells.append(f"{value:.1f}{interval}")
        lines.append(f"| {group} | {found['pairs']:,} | {' | '.join(cells)} |")
    return lines


class UnigramModel:
    """Words that do not depend on each other, with add-one counts; all unknown words share one count.

    A text scores the sum of ln p over its words. It is a control: it knows how often words occur, and no grammar.
    """

    def __init__(self, texts: Iterable[Sequence[str]]):
        self.counts = Counter(word for text in texts for word in text)
        self.total = sum(self.counts.values()) + len(self.counts) + 1

    def __call__(self, words: Sequence[str]) -> float:
        """Return ln p of a text. The order of its words changes nothing, not even the rounding."""
        return float(np.log(sorted((self.counts[word] + 1) / self.total for word in words)).sum())
