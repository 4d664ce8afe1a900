"""Judge runs: which contender is better than the reference at which label budget, and how certain that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from decero.errors import UserError, did_you_mean
from decero.evaluation import tables, wording
from decero.evaluation.corpus_tests import (
    Score,
    corpus_bootstrap,
    corpus_difference,
    corpus_permutation_test,
    is_mean,
    without_empty_columns,
)
from decero.evaluation.metrics import higher_is_better
from decero.evaluation.statistics import (
    cluster_means,
    holm,
    mean_and_sd,
    paired_permutation_test,
    shared_luck,
    two_way_bootstrap,
)

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """One contender, one label budget, one seed."""

    contender: str
    budget: int | None  # labelled training examples; None: all
    seed: int
    status: str  # "ok" or "failed"
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # on the test set
    # What each test example adds to the metric, in the same order for every run: (N,) for a mean, (N, K) for a corpus
    # metric.
    scores: np.ndarray | None = None
    wall_time_s: float = 0.0
    peak_memory_bytes: int = 0
    num_parameters: int = 0
    trained_parameters: int = 0  # of an adapter; 0: all of them
    total_flos: float = 0.0
    upfront_wall_time_s: float = 0.0  # the user's own pretraining, needed once for all runs
    pretraining: str | None = None  # the user's own checkpoint that it starts from; None: no checkpoint, or a published
    curve: list[dict] = field(default_factory=list)  # [{"step": int, "loss": float, optional "eval_<metric>": float}]


@dataclass(frozen=True)
class Cell:
    """The results of one contender at one label budget, over its seeds."""

    contender: str
    budget: int | None
    mean: float  # of the metric over the seeds that succeeded; NaN for none
    sd: float  # sample standard deviation; NaN for fewer than two seeds
    values: dict[int, float]  # seed -> metric
    n_ok: int
    n_failed: int
    wall_time_s: float  # median of the runs; NaN when none succeeded
    upfront_wall_time_s: float
    num_parameters: int
    trained_parameters: int = 0
    peak_memory_bytes: float = 0.0  # median of the runs
    n_pretrainings: int = 0  # own checkpoints that its runs start from


@dataclass(frozen=True)
class Comparison:
    """The reference minus another contender at one label budget, in the unit and direction of the metric."""

    other: str
    budget: int | None
    seeds: tuple[int, ...]  # that succeeded for both
    n_examples: int
    difference: float
    low: float  # 95 % interval over training runs and examples, not adjusted for the number of comparisons
    high: float
    p: float
    p_adjusted: float  # Holm, over all comparisons of the verdict
    winner: str | None  # None: no difference shown, or not comparable
    word: str  # "<contender> better" | "no difference shown" | "not comparable"
    reason: str | None = None  # why not comparable


@dataclass(frozen=True)
class Verdict:
    """All results and comparisons, and their text."""

    metric: str
    reference: str
    contenders: tuple[str, ...]  # in the order of the runs
    budgets: tuple[int | None, ...]  # rising; None (all labels) last
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    unit: str = "labels"  # of budgets; "": there are none
    split: str = "test"  # that was scored
    proxy: bool = False  # another score per example is compared, because the metric is not a function of sums
    settings: Mapping[str, str] = field(default_factory=dict)  # contender -> its own settings, where they differ
    advice: tuple[str, ...] = ()  # sentences: what to ship, and what to beware of
    mean: bool = True  # scores are means of one value an example, not functions of sums

    @property
    def higher_is_better(self) -> bool:
        return higher_is_better(self.metric)

    def cell(self, contender: str, budget: int | None) -> Cell | None:
        """Return the cell, None when there was no run."""
        return next((cell for cell in self.cells if (cell.contender, cell.budget) == (contender, budget)), None)

    def summary(self) -> list[str]:
        """Return one line per contender over all label budgets; empty for a single budget."""
        return wording.summary(self)

    def cost(self) -> str:
        """Return one sentence: the time of a run of each contender, and of its pretraining."""
        return wording.cost(self)

    def sentences(self) -> list[str]:
        """Return one sentence per comparison, whoever wins."""
        return [wording.sentence(self, comparison) for comparison in self.comparisons]

    def record(self) -> dict[str, Any]:
        """Return `metric` (the mean per contender and budget), `table`, `advice` and `sentences`, for result.json."""
        means = {wording.where(c.contender, c.budget, self.unit): _number(c.mean) for c in self.cells}
        sentences = self.summary() + self.sentences()
        return {"metric": means, "table": self.table(), "advice": list(self.advice), "sentences": sentences}

    def table(self) -> str:
        """Return a Markdown table, contender by label budget, and the legend of its marks."""
        return tables.markdown(self)


def judge(
    runs: Sequence[ScoredRun],
    *,
    metric: str,
    reference: str,
    seed: int = 0,
    n_resamples: int = 10_000,
    score_of_sum: Score | None = None,
    incomparable: Mapping[str, str] = MappingProxyType({}),
    unit: str = "labels",
    split: str = "test",
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Verdict:
    """Compare every contender with the reference at every label budget.

    A winner needs both a Holm-adjusted p of the paired permutation test below 0.05 *and* a 95 % interval over seeds and
    examples without 0. The first guards against a lucky test set, the second against a lucky training run. Only seeds
    that succeeded for both are paired.

    score_of_sum: the metric of summed rows, where `scores` holds rows (N, K). incomparable: contender -> why its metric
    does not compare with the reference's, such as another tokenizer. unit: what budgets count. split: what was scored.
    settings: contender -> its own settings, shown in the table.

    Seeds that start from the same pretrained checkpoint share its luck. Where a contender has several checkpoints, the
    interval therefore resamples checkpoints, not seeds.

    Raises UserError: no runs; a reference without runs; the same run twice; a successful run without the metric or the
    scores; test sets of different sizes.
    """
    _check(runs, metric, reference, incomparable)
    direction = 1 if higher_is_better(metric) else -1
    contenders = tuple(dict.fromkeys(run.contender for run in runs))
    budgets = tuple(sorted({run.budget for run in runs}, key=lambda budget: (budget is None, budget or 0)))
    by_cell: dict[tuple[str, int | None], list[ScoredRun]] = {}
    for run in runs:
        by_cell.setdefault((run.contender, run.budget), []).append(run)

    drafts = [
        _compare(by_cell, reference, other, budget, seed, n_resamples, score_of_sum, incomparable.get(other))
        for budget in budgets
        for other in contenders
        if other != reference
    ]
    comparable = [draft for draft in drafts if draft["reason"] is None]
    for draft, p_adjusted in zip(comparable, holm([draft["p"] for draft in comparable]), strict=True):
        draft["p_adjusted"] = float(p_adjusted)
        if p_adjusted < LEVEL and not draft["low"] <= 0 <= draft["high"]:
            draft["winner"] = reference if direction * draft["difference"] > 0 else draft["other"]
        draft["word"] = f"{draft['winner']} better" if draft["winner"] else "no difference shown"

    cells = tuple(
        _cell(by_cell[contender, budget], metric, hidden=contender in incomparable)
        for contender in contenders
        for budget in budgets
        if (contender, budget) in by_cell
    )
    comparisons = tuple(Comparison(**draft) for draft in drafts)
    mean = score_of_sum is None or any(r.scores is not None and _mean_only(r.scores, score_of_sum) for r in runs)
    proxy = mean and not wording.is_mean_metric(metric)
    return Verdict(metric, reference, contenders, budgets, cells, comparisons, unit, split, proxy, settings, mean=mean)


def _cell(runs: list[ScoredRun], metric: str, hidden: bool) -> Cell:
    """hidden: its numbers mean something else than the reference's, so they are not shown beside them."""
    ok = [run for run in runs if run.status == "ok"]
    values = {run.seed: float("nan") if hidden else float(run.metrics[metric]) for run in ok}
    mean, sd = mean_and_sd(values.values())
    return Cell(
        runs[0].contender, runs[0].budget, mean, sd, values, len(ok), len(runs) - len(ok),
        wall_time_s=float(np.median([run.wall_time_s for run in ok])) if ok else math.nan,
        peak_memory_bytes=float(np.median([run.peak_memory_bytes for run in ok])) if ok else math.nan,
        upfront_wall_time_s=max(run.upfront_wall_time_s for run in runs),
        num_parameters=max(run.num_parameters for run in runs),
        trained_parameters=max(run.trained_parameters for run in runs),
        n_pretrainings=len({run.pretraining for run in runs} - {None}),
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_only(scores: np.ndarray, score_of_sum: Score | None) -> bool:
    return scores.ndim == 1 or (score_of_sum is not None and is_mean(scores, score_of_sum))


def _compare(
    by_cell, reference: str, other: str, budget: int | None, seed: int, n_resamples: int, score_of_sum, why: str | None
) -> dict:
    """Return the fields of a Comparison, before Holm's correction."""
    scores = {
        name: {run.seed: run.scores for run in by_cell.get((name, budget), []) if run.status == "ok"}
        for name in (reference, other)
    }
    seeds = tuple(sorted(scores[reference].keys() & scores[other].keys()))
    nan = float("nan")
    draft = {
        "other": other, "budget": budget, "seeds": seeds, "n_examples": 0, "difference": nan, "low": nan, "high": nan,
        "p": nan, "p_adjusted": nan, "winner": None, "word": "not comparable", "reason": None,
    }  # fmt: skip
    for name in (reference, other):
        if not scores[name]:
            ran = (name, budget) in by_cell
            return draft | {"reason": f"every run of {name} failed" if ran else f"{name} has no run with this budget"}
    if why:
        return draft | {"reason": why}
    if not seeds:
        return draft | {"reason": "no seed succeeded for both"}
    started = [{run.seed: run.pretraining for run in by_cell[name, budget]} for name in scores]
    clusters = shared_luck([[checkpoints[s] for s in seeds] for checkpoints in started])
    if clusters and len(set(clusters)) == 1:
        return draft | {"reason": f"checkpoints of {reference} and {other} share seeds; give both the same number"}
    reference_SN = np.stack([scores[reference][s] for s in seeds])
    other_SN = np.stack([scores[other][s] for s in seeds])
    if reference_SN.shape[1] < 2:
        return draft | {"reason": "the test set has only one example"}
    draft |= {"n_examples": reference_SN.shape[1]}
    if not (_mean_only(reference_SN[0], score_of_sum) and _mean_only(other_SN[0], score_of_sum)):
        (ours_SN, theirs_SN), score = without_empty_columns([reference_SN, other_SN], score_of_sum)
        low, high = corpus_bootstrap(ours_SN, theirs_SN, score, seed, n_resamples, clusters_S=clusters)
        p = corpus_permutation_test(ours_SN, theirs_SN, score, seed, n_resamples)
        difference = corpus_difference(ours_SN, theirs_SN, score, clusters)
        return draft | {"difference": difference, "low": low, "high": high, "p": p}
    if reference_SN.ndim == 3:  # rows [value, 1]
        reference_SN, other_SN = reference_SN[..., 0], other_SN[..., 0]
    low, high = two_way_bootstrap(reference_SN, other_SN, seed, n_resamples, clusters_S=clusters)
    p = paired_permutation_test(reference_SN, other_SN, seed, n_resamples)
    difference = float(cluster_means(reference_SN - other_SN, clusters).mean())
    return draft | {"difference": difference, "low": low, "high": high, "p": p}


def _check(runs: Sequence[ScoredRun], metric: str, reference: str, incomparable: Mapping[str, str]) -> None:
    names = {run.contender for run in runs}
    if not names:
        raise UserError("there are no runs to judge")
    if reference not in names:
        raise UserError(f"no run of the reference {reference!r}{did_you_mean(reference, names)}")
    seen, sizes = set(), set()
    for run in runs:
        label = f"{run.contender}, {wording.labels(run.budget)}, seed {run.seed}"
        if (key := (run.contender, run.budget, run.seed)) in seen:
            raise UserError(f"{label}: there are two such runs")
        seen.add(key)
        if run.status != "ok" or run.contender in incomparable:
            continue
        if metric not in run.metrics:
            raise UserError(f"{label}: no metric {metric!r}{did_you_mean(metric, run.metrics)}")
        if run.scores is None or np.ndim(run.scores) not in (1, 2):
            raise UserError(f"{label}: no per-example scores (one number or row per example)")
        sizes.add(len(run.scores))
        if len(sizes) > 1:
            raise UserError(f"{label}: scored {len(run.scores)} test examples, others {min(sizes - {len(run.scores)})}")
