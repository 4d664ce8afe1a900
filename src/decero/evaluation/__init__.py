"""Runs in, an honest verdict out: metrics, paired statistics, a table, figures and one HTML page. All NumPy."""

from decero.evaluation.metrics import HIGHER_IS_BETTER, MAIN_METRIC, METRICS, compute_metrics, example_scores, predict
from decero.evaluation.report import write_report
from decero.evaluation.statistics import holm, mean_and_sd, paired_permutation_test, two_way_bootstrap
from decero.evaluation.verdict import Cell, Comparison, Run, Verdict, judge

__all__ = [
    "HIGHER_IS_BETTER", "MAIN_METRIC", "METRICS", "Cell", "Comparison", "Run", "Verdict", "compute_metrics",
    "example_scores", "holm", "judge", "mean_and_sd", "paired_permutation_test", "predict", "two_way_bootstrap",
    "write_report",
]  # fmt: skip
