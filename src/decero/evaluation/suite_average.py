"""The average of several tasks' metrics, with an interval over test examples and training runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from decero.evaluation.corpus_tests import Score, ratio, without_empty_columns
from decero.evaluation.statistics import cluster_means, shared_luck

RESAMPLES = 2000
UNSEEN = 3.84  # squared normal quantile of 95 %: Wilson's interval of n equal values misses UNSEEN / (n + UNSEEN)


@dataclass(frozen=True, eq=False)
class TaskRuns:
    """The successful runs of one task at one label budget.

    rows: contender -> seed -> what each example adds to the metric, (N, K). score: the metric of summed rows.
    scale: by which the metric is multiplied, so that 100 is the best. pretraining: contender -> seed -> the user's own
    checkpoint that it starts from, or None.
    """

    name: str
    rows: Mapping[str, Mapping[int, np.ndarray]]
    score: Score
    scale: float = 100.0
    pretraining: Mapping[str, Mapping[int, str | None]] | None = None


class Estimate(NamedTuple):
    """An average, or a difference of averages, in points. p: two-sided, of no difference. tasks: how many count."""

    value: float
    low: float
    high: float
    p: float
    tasks: int


class _Part(NamedTuple):
    """One task: the metric (or difference) of each training run, (C,), its resamples (R, C), and the examples.

    checkpoints: whether the training runs are pretrainings, whose luck all tasks share.
    """

    observed: np.ndarray
    resampled: np.ndarray
    examples: int
    checkpoints: bool


class Resampled:
    """Resample the test examples of every task once: N of N with replacement, the same draw for all contenders.

    Tasks are drawn independently of each other.
    """

    def __init__(self, tasks: Sequence[TaskRuns], seed: int = 0, n_resamples: int = RESAMPLES):
        self.tasks, self.seed = list(tasks), seed
        self.found: list[dict[str, dict[int, tuple[float, np.ndarray]]]] = []
        for number, task in enumerate(self.tasks):
            generator = np.random.default_rng([seed, number])
            self.found.append(_resample(task, generator, n_resamples))

    def average(self, contender: str) -> Estimate | None:
        """Return the mean over tasks of a contender's metric, each a mean over its seeds.

        None if it has no run in some task: an average over other tasks would not compare.
        """
        parts = [self._part(place, contender, None) for place in range(len(self.tasks))]
        return None if any(part is None for part in parts) else self._estimate([part for part in parts if part])

    def difference(self, contender: str, reference: str) -> Estimate | None:
        """Return contender minus reference, averaged over the tasks in which both have runs of one seed.

        Pairs test examples and seeds. None without such a task.
        """
        parts = [self._part(place, contender, reference) for place in range(len(self.tasks))]
        shared = [part for part in parts if part]
        return self._estimate(shared) if shared else None

    def _part(self, place: int, contender: str, reference: str | None) -> _Part | None:
        found, task = self.found[place], self.tasks[place]
        names = [contender] if reference is None else [contender, reference]
        seeds = sorted(set.intersection(*(set(found.get(name, {})) for name in names)))
        if not seeds:
            return None
        signs = (1, -1)
        observed_S = np.array(
            [sum(s * found[n][seed][0] for s, n in zip(signs, names, strict=False)) for seed in seeds]
        )
        values_SR = np.stack([sum(s * found[n][seed][1] for s, n in zip(signs, names, strict=False)) for seed in seeds])
        started = task.pretraining or {}
        own = shared_luck([[started.get(name, {}).get(seed) for seed in seeds] for name in names])
        examples = len(task.rows[contender][seeds[0]])
        return _Part(cluster_means(observed_S, own), cluster_means(values_SR, own).T, examples, own is not None)

    def _estimate(self, parts: list[_Part]) -> Estimate:
        """Return the mean over tasks, and a 95 % interval.

        Each resample draws examples of every task, and C - 1 of its C training runs (Rao & Wu 1988). The standard error
        gives a Student interval. Degrees of freedom: Satterthwaite 1946, from the variances of examples and training
        runs of each task. See `two_way_bootstrap`. Pretrainings are drawn once for all tasks; seeds, for each task.
        """
        tasks, generator = len(parts), np.random.default_rng([self.seed, len(self.tasks)])
        if all(part.checkpoints for part in parts) and len({part.observed.shape for part in parts}) == 1:
            mean_part = _Part(
                np.mean([part.observed for part in parts], axis=0), np.mean([part.resampled for part in parts], axis=0),
                sum(part.examples for part in parts), True,
            )  # fmt: skip
            return self._estimate_of([mean_part], generator)._replace(tasks=tasks)
        return self._estimate_of(parts, generator)

    def _estimate_of(self, parts: list[_Part], generator: np.random.Generator) -> Estimate:
        tasks = len(parts)
        mean = float(np.mean([part.observed.mean() for part in parts]))
        total_R, sources = 0.0, []
        for part in parts:
            R, C = part.resampled.shape
            draws = max(C - 1, 1)
            weights_RC = generator.multinomial(draws, np.full(C, 1 / C), R) / draws
            total_R = total_R + (weights_RC * part.resampled).sum(axis=1) / tasks
            luck = part.resampled.mean(axis=1).var(ddof=1)
            sources.append((luck / tasks**2, part.examples - 1))
            if C > 1:
                sources.append((part.observed.var(ddof=1) / C / tasks**2, C - 1))
        variance = sum(each for each, _ in sources)
        if variance == 0:  # resampling shows nothing, so ask how surprising equal signs of all examples are
            examples = sum(part.examples for part in parts)
            reach = abs(mean) * UNSEEN / (examples + UNSEEN)
            return Estimate(
                mean, mean - reach, mean + reach, 1.0 if mean == 0 else min(1.0, 2.0 ** (1 - examples)), tasks
            )
        freedom = variance**2 / sum(each**2 / df for each, df in sources if df)
        error = float(np.std(total_R, ddof=1))
        reach = float(stats.t.ppf(0.975, freedom)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else 0.0
        return Estimate(mean, mean - reach, mean + reach, p, tasks)


def _resample(
    task: TaskRuns, generator: np.random.Generator, n_resamples: int
) -> dict[str, dict[int, tuple[float, np.ndarray]]]:
    """Return contender -> seed -> the metric, and the metric of each resample (R,)."""
    runs = [(name, seed, rows) for name, seeds in task.rows.items() for seed, rows in seeds.items()]
    found: dict[str, dict[int, tuple[float, np.ndarray]]] = {}
    if not runs:
        return found
    kept, score = without_empty_columns([rows for _, _, rows in runs], task.score)
    stacked_NF = np.concatenate(kept, axis=1, dtype=np.float64)
    N, K = stacked_NF.shape[0], stacked_NF.shape[1] // len(runs)
    sums, chunk = [], 1 + 2_000_000 // N  # 16 MB of draws at a time
    for start in range(0, n_resamples, chunk):
        draws_RN = generator.multinomial(N, np.full(N, 1 / N), min(chunk, n_resamples - start)).astype(np.float64)
        sums.append(draws_RN @ stacked_NF)
    sums_RF = np.concatenate(sums)
    for place, (name, seed, rows) in enumerate(runs):
        own_RK = sums_RF[:, place * K : (place + 1) * K]
        values_R = ratio(own_RK) if task.score is ratio else np.array([score(sum_K) for sum_K in own_RK])
        whole = float(task.score(np.asarray(rows, dtype=np.float64).sum(axis=0)))
        found.setdefault(name, {})[seed] = (task.scale * whole, task.scale * values_R)
    return found
