"""Turn runs into a verdict: metrics, paired statistics, a table, figures and one HTML page. All NumPy."""

from decero.evaluation.baselines import ByteNgrams, compressed_bits_per_byte, ngram_bits_per_byte
from decero.evaluation.bootstrap import PairedBootstrap, paired_bootstrap
from decero.evaluation.metrics import HIGHER_IS_BETTER, MAIN_METRIC, METRICS, compute_metrics, example_scores, predict
from decero.evaluation.report import write_report
from decero.evaluation.statistics import holm, mean_and_sd, paired_permutation_test, two_way_bootstrap
from decero.evaluation.text_metrics import (
    TEXT_METRICS,
    bits_per_byte,
    compute_text_metrics,
    exact_metrics,
    perplexity,
    summary_metrics,
    summary_signatures,
    text_signatures,
    translation_metrics,
    translation_signatures,
)
from decero.evaluation.verdict import Cell, Comparison, ScoredRun, Verdict, judge

__all__ = [
    "HIGHER_IS_BETTER", "MAIN_METRIC", "METRICS", "TEXT_METRICS", "ByteNgrams", "Cell", "Comparison", "PairedBootstrap",
    "ScoredRun", "Verdict", "bits_per_byte", "compressed_bits_per_byte", "compute_metrics", "compute_text_metrics",
    "exact_metrics", "example_scores", "holm", "judge", "mean_and_sd", "ngram_bits_per_byte", "paired_bootstrap",
    "paired_permutation_test", "perplexity", "predict", "summary_metrics", "summary_signatures", "text_signatures",
    "translation_metrics", "translation_signatures", "two_way_bootstrap", "write_report",
]  # fmt: skip
