"""Judge runs: which contender is better than the reference at which label budget, and how certain that is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from decero.errors import UserError, did_you_mean
from decero.evaluation import tables, wording
from decero.evaluation.statistics import holm, mean_and_sd, paired_permutation_test, two_way_bootstrap

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Run:
    """One contender, one label budget, one seed."""

    contender: str
    budget: int | None  # labelled training examples; None: all
    seed: int
    status: str  # "ok" or "failed"
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # on the test set
    scores: np.ndarray | None = None  # example_scores on the test set (N,), in the same order for every run
    wall_time_s: float = 0.0
    num_parameters: int = 0
    total_flos: float = 0.0
    upfront_wall_time_s: float = 0.0  # the user's own pretraining, needed once for all runs
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
    wall_time_s: float  # mean per run; NaN when none succeeded
    upfront_wall_time_s: float
    num_parameters: int


@dataclass(frozen=True)
class Comparison:
    """The reference minus another contender at one label budget, in mean per-example score (higher is better)."""

    other: str
    budget: int | None
    seeds: tuple[int, ...]  # that succeeded for both
    n_examples: int
    difference: float
    low: float  # 95 % interval over seeds and test examples, not adjusted for the number of comparisons
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
        """Return `metric` (the mean per contender and budget), `table` and `sentences`, for result.json."""
        means = {f"{c.contender}, {c.budget or 'all'} labels": c.mean if c.n_ok else None for c in self.cells}
        return {"metric": means, "table": self.table(), "sentences": self.summary() + self.sentences()}

    def table(self) -> str:
        """Return a Markdown table, contender by label budget, and the legend of its marks."""
        return tables.markdown(self)


def judge(runs: Sequence[Run], *, metric: str, reference: str, seed: int = 0, n_resamples: int = 10_000) -> Verdict:
    """Compare every contender with the reference at every label budget.

    A winner needs both a Holm-adjusted p of the paired permutation test below 0.05 *and* a 95 % interval over seeds and
    examples without 0. The first guards against a lucky test set, the second against a lucky training run. Only seeds
    that succeeded for both are paired.

    Raises UserError: no runs; a reference without runs; the same run twice; a successful run without the metric or the
    scores; test sets of different sizes.
    """
    _check(runs, metric, reference)
    contenders = tuple(dict.fromkeys(run.contender for run in runs))
    budgets = tuple(sorted({run.budget for run in runs}, key=lambda budget: (budget is None, budget or 0)))
    by_cell: dict[tuple[str, int | None], list[Run]] = {}
    for run in runs:
        by_cell.setdefault((run.contender, run.budget), []).append(run)

    drafts = [
        _compare(by_cell, reference, other, budget, seed, n_resamples)
        for budget in budgets
        for other in contenders
        if other != reference
    ]
    comparable = [draft for draft in drafts if draft["reason"] is None]
    for draft, p_adjusted in zip(comparable, holm([draft["p"] for draft in comparable]), strict=True):
        draft["p_adjusted"] = float(p_adjusted)
        if p_adjusted < LEVEL and not draft["low"] <= 0 <= draft["high"]:
            draft["winner"] = reference if draft["difference"] > 0 else draft["other"]
        draft["word"] = f"{draft['winner']} better" if draft["winner"] else "no difference shown"

    cells = tuple(
        _cell(by_cell[contender, budget], metric)
        for contender in contenders
        for budget in budgets
        if (contender, budget) in by_cell
    )
    return Verdict(metric, reference, contenders, budgets, cells, tuple(Comparison(**draft) for draft in drafts))


def _cell(runs: list[Run], metric: str) -> Cell:
    ok = [run for run in runs if run.status == "ok"]
    values = {run.seed: float(run.metrics[metric]) for run in ok}
    mean, sd = mean_and_sd(values.values())
    return Cell(
        runs[0].contender, runs[0].budget, mean, sd, values, len(ok), len(runs) - len(ok),
        wall_time_s=mean_and_sd(run.wall_time_s for run in ok)[0],
        upfront_wall_time_s=max(run.upfront_wall_time_s for run in runs),
        num_parameters=max(run.num_parameters for run in runs),
    )  # fmt: skip


def _compare(by_cell, reference: str, other: str, budget: int | None, seed: int, n_resamples: int) -> dict:
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
    if not seeds:
        return draft | {"reason": "no seed succeeded for both"}
    reference_SN = np.stack([scores[reference][s] for s in seeds])
    other_SN = np.stack([scores[other][s] for s in seeds])
    if reference_SN.shape[1] < 2:
        return draft | {"reason": "the test set has only one example"}
    low, high = two_way_bootstrap(reference_SN, other_SN, seed, n_resamples)
    p = paired_permutation_test(reference_SN, other_SN, seed, n_resamples)
    difference = float((reference_SN - other_SN).mean())
    return draft | {"n_examples": reference_SN.shape[1], "difference": difference, "low": low, "high": high, "p": p}


def _check(runs: Sequence[Run], metric: str, reference: str) -> None:
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
        if run.status != "ok":
            continue
        if metric not in run.metrics:
            raise UserError(f"{label}: no metric {metric!r}{did_you_mean(metric, run.metrics)}")
        if run.scores is None or np.ndim(run.scores) != 1:
            raise UserError(f"{label}: no per-example scores (one number per example)")
        sizes.add(len(run.scores))
        if len(sizes) > 1:
            raise UserError(f"{label}: scored {len(run.scores)} test examples, others {min(sizes - {len(run.scores)})}")
