"""Paired tests for corpus metrics, such as BLEU and bits a byte, which are not a mean over examples.

A corpus metric is a function of a sum. Example n of seed s adds a row of K numbers, `a_SNK[s, n]`, and `score` computes
the metric from the summed rows. The tests draw or swap rows and score the new sums. For means, see `statistics`.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit  # quantile of Student's t

from decero.evaluation.statistics import cluster_means

Score = Callable[[np.ndarray], Any]  # (K,) -> the metric


def ratio(sum_K: np.ndarray) -> Any:
    """Divide the first number by the second: the metric of rows [value, weight], a mean if every weight is 1."""
    return sum_K[..., 0] / sum_K[..., 1]


def is_mean(values_NK: np.ndarray, score: Score) -> bool:
    """Return whether the metric is the plain mean of the first column."""
    return score is ratio and values_NK.shape[-1] == 2 and bool((values_NK[..., 1] == 1).all())


def without_empty_columns(rows_xK: Sequence[np.ndarray], score: Score) -> tuple[list[np.ndarray], Score]:
    """Drop the columns that are zero in all of `rows_xK`; return the rest, and the metric of sums of the rest."""
    K = rows_xK[0].shape[-1]
    used_K = np.any([rows.reshape(-1, K).any(axis=0) for rows in rows_xK], axis=0)
    if score is ratio or used_K.all():
        return list(rows_xK), score

    def score_of_rest(sum_U: np.ndarray) -> Any:
        sum_K = np.zeros(K)
        sum_K[used_K] = sum_U
        return score(sum_K)

    return [rows[..., used_K] for rows in rows_xK], score_of_rest


def corpus_difference(a_SNK, b_SNK, score: Score, clusters_S: Sequence[Hashable] | None = None) -> float:
    """Return the metric of a minus that of b on the whole test set, averaged over seeds (over clusters of seeds)."""
    a_SNK, b_SNK = _paired(a_SNK, b_SNK)
    difference_S = _scores(score, a_SNK.sum(axis=1)) - _scores(score, b_SNK.sum(axis=1))
    return float(cluster_means(difference_S, clusters_S).mean())


def corpus_permutation_test(a_SNK, b_SNK, score: Score, seed: int, n_resamples: int = 10_000) -> float:
    """Return the two-sided p-value of approximate randomization.

    A swap exchanges the two systems' rows of an example, in all seeds at once. All swaps are tried if few examples
    differ; otherwise n_resamples random ones, and p is never below 1/(n_resamples + 1). The test does not measure the
    luck of training; `corpus_bootstrap` does.
    Source: Noreen 1989; Riezler & Maxwell 2005 (ACL workshop on evaluation, section 3).
    """
    a_SNK, b_SNK = _paired(a_SNK, b_SNK)
    S, N, K = a_SNK.shape
    change_NF = (b_SNK - a_SNK).transpose(1, 0, 2).reshape(N, S * K)
    change_MF = change_NF[change_NF.any(axis=1)]
    M = len(change_MF)
    if M < 2:  # of one difference both orders are equally far from zero
        return 1.0
    a_SK, b_SK = a_SNK.sum(axis=1), b_SNK.sum(axis=1)
    observed = abs(corpus_difference(a_SNK, b_SNK, score))
    exact = M < 60 and n_resamples >= 2**M
    rounds = 2**M if exact else n_resamples
    generator, extreme, chunk = np.random.default_rng(seed), 0, 1 + 2_000_000 // M  # 16 MB of swaps at a time
    for start in range(0, rounds, chunk):
        size = min(chunk, rounds - start)
        if exact:
            swaps_RM = (np.arange(start, start + size)[:, None] >> np.arange(M)) & 1
        else:
            swaps_RM = generator.integers(0, 2, (size, M))
        moved_RSK = (swaps_RM.astype(np.float64) @ change_MF).reshape(size, S, K)
        swapped_R = (_scores(score, a_SK + moved_RSK) - _scores(score, b_SK - moved_RSK)).mean(axis=1)
        extreme += int((np.abs(swapped_R) >= observed - 1e-9 * max(observed, 1e-9)).sum())
    return extreme / rounds if exact else (extreme + 1) / (rounds + 1)


def corpus_bootstrap(
    a_SNK,
    b_SNK,
    score: Score,
    seed: int,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    clusters_S: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Return an interval (low, high) of the difference, as `two_way_bootstrap` does for means.

    It includes the luck of training and of the test set. Each resample draws N examples and S - 1 seeds, and scores the
    sums of the drawn rows. The standard error gives a Student interval; the same resamples give the share of the
    examples in its degrees of freedom.
    clusters_S: as in `two_way_bootstrap`.
    Raises ValueError for rows that do not pair up or fewer than two examples.
    """
    a_SNK, b_SNK = _paired(a_SNK, b_SNK)
    S, N, K = a_SNK.shape
    if N < 2:
        raise ValueError("an interval takes at least two test examples")
    observed_C = cluster_means(_scores(score, a_SNK.sum(axis=1)) - _scores(score, b_SNK.sum(axis=1)), clusters_S)
    C, mean = len(observed_C), float(observed_C.mean())
    a_NF, b_NF = (rows.transpose(1, 0, 2).reshape(N, S * K) for rows in (a_SNK, b_SNK))

    generator, draws = np.random.default_rng(seed), max(C - 1, 1)
    both, examples = [], []  # differences under both kinds of luck, and under that of the examples alone
    chunk = 1 + 2_000_000 // N  # 16 MB of weights at a time
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        cluster_weights_RC = generator.multinomial(draws, np.full(C, 1 / C), size) / draws
        drawn_RN = generator.multinomial(N, np.full(N, 1 / N), size).astype(np.float64)
        scores = [_scores(score, (drawn_RN @ rows_NF).reshape(size, S, K)) for rows_NF in (a_NF, b_NF)]
        difference_RC = cluster_means((scores[0] - scores[1]).T, clusters_S).T
        both.append((cluster_weights_RC * difference_RC).sum(axis=1))
        examples.append(difference_RC.mean(axis=1))

    luck = [(_variance(np.concatenate(examples)), N - 1)]  # (variance of the mean, degrees of freedom)
    if C > 1:
        luck.append((float(observed_C.var(ddof=1)) / C, C - 1))
    total = sum(variance for variance, _ in luck)
    if total == 0:
        return mean, mean
    freedom = total**2 / sum(variance**2 / df for variance, df in luck)
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * _variance(np.concatenate(both)) ** 0.5
    return mean - reach, mean + reach


def _scores(score: Score, sums_xK: np.ndarray) -> np.ndarray:
    """The metric of every sum, in float64 of the leading shape."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if score is ratio:
            return ratio(sums_xK)
        flat = sums_xK.reshape(-1, sums_xK.shape[-1])
        return np.array([score(sum_K) for sum_K in flat], dtype=np.float64).reshape(sums_xK.shape[:-1])


def _variance(values: np.ndarray) -> float:
    """Return the sample variance of the finite values: a resample of a tiny test set may have no score."""
    return float(values[np.isfinite(values)].var(ddof=1))


def _paired(a_SNK, b_SNK) -> tuple[np.ndarray, np.ndarray]:
    a_SNK, b_SNK = np.asarray(a_SNK, dtype=np.float64), np.asarray(b_SNK, dtype=np.float64)
    if a_SNK.shape != b_SNK.shape or a_SNK.ndim != 3 or not a_SNK.size:
        raise ValueError(f"rows must pair up as (seeds, examples, numbers), not {a_SNK.shape} and {b_SNK.shape}")
    if not (np.isfinite(a_SNK).all() and np.isfinite(b_SNK).all()):
        raise ValueError("rows must be finite")
    return a_SNK, b_SNK
