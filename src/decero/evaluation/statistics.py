"""Statistics of a difference: mean and spread over seeds, a paired test, an interval, Holm's correction.

`a_SN` and `b_SN` are always the per-example scores of two systems: S seeds (row s of both was trained with the same
seed) by N test examples (column n of both is the same example).
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit  # normal distribution, its quantiles, and those of Student's t


def mean_and_sd(values) -> tuple[float, float]:
    """Return mean and sample standard deviation (ddof=1). With one value sd is NaN; with none, both are NaN."""
    values = np.asarray(list(values), dtype=np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def wilson(values_N, confidence: float = 0.95, size: float | None = None) -> tuple[float, float]:
    """Return the interval (low, high) of a share, from values between 0 and 1 (Wilson 1927); also good near 0 and 1.

    A value of 1/2, such as a tie, varies less than a draw of 0 or 1, so it makes the interval rather too wide.
    size: number of independent values, where it is below the number of values, see `independent_size`.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    N, mean = size or len(values_N), float(values_N.mean())
    z = float(ndtri((1 + confidence) / 2))
    middle = (mean + z**2 / (2 * N)) / (1 + z**2 / N)
    reach = z / (1 + z**2 / N) * float(np.sqrt(mean * (1 - mean) / N + z**2 / (4 * N**2)))
    return max(0.0, min(mean, middle - reach)), min(1.0, max(mean, middle + reach))  # the share itself is inside


def independent_size(values_N, clusters_N: Sequence[Hashable]) -> float:
    """Return how many independent values are worth as much as these, of which those of a cluster resemble each other.

    It is N over the design effect: the variance of the mean when clusters are drawn, by the variance when values are
    (Korn & Graubard 1998, Survey Methodology 24(2)). Where all values are equal, nothing shows how they vary: then it
    is the number of clusters.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters_N))}
    G, N, rest_N = len(numbers), len(values_N), values_N - values_N.mean()
    if G == N or not rest_N.any():
        return float(G)
    if G == 1:
        return 1.0
    sums_G = np.bincount([numbers[cluster] for cluster in clusters_N], weights=rest_N)
    effect = G / (G - 1) * (sums_G**2).sum() / (rest_N**2).sum()
    return N / max(1.0, float(effect))


def paired_permutation_test(a_SN, b_SN, seed: int, n_resamples: int = 10_000) -> float:
    """Return the two-sided p-value of the paired sign-flip test over test examples.

    It answers: *if the two systems were equally good on the average example, how often would another N test examples
    show a difference this large between these same trained models?* Scores are averaged over seeds first, so the test
    ignores the variation between training runs; `two_way_bootstrap` includes it. Higher scores need not be better.

    The p-value is exact when few examples differ. Otherwise it comes from n_resamples random flips, and its one-sided
    value is at least 1/(n_resamples + 1). Equal scores give 1.

    Raises ValueError for scores that do not pair up.
    Source: Noreen 1989, Computer-Intensive Methods for Testing Hypotheses; recommended for NLP by Dror et al. 2018
    (ACL, section 3.2.2).
    """
    difference_N = _difference(a_SN, b_SN).mean(axis=0)
    # Flipping a zero changes nothing. Without ties p is the same, faster, and more often exact.
    difference_N = difference_N[difference_N != 0]
    if len(difference_N) < 2:  # both signs of a single difference are equally far from zero
        return 1.0
    from scipy import stats  # imported late: half a second, which many commands never need

    result = stats.permutation_test(
        (difference_N,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=1 + 2_000_000 // len(difference_N),  # 16 MB of float64 at a time
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def shared_luck(checkpoints_KS: Sequence[Sequence[Hashable]]) -> list[int] | None:
    """Return for each of S seeds the number of its cluster; None if no contender has several checkpoints.

    checkpoints_KS: of each of K contenders, the pretrained checkpoint that each seed starts from.

    Two seeds are in one cluster if some contender starts both from one checkpoint: they share its luck. So clusters are
    connected components. With two checkpoints of one contender and four of the other, four seeds make two clusters.
    """
    several_KS = [checkpoints_S for checkpoints_S in checkpoints_KS if len(set(checkpoints_S)) > 1]
    if not several_KS:
        return None
    clusters = list(range(len(several_KS[0])))
    for checkpoints_S in several_KS:
        for checkpoint in set(checkpoints_S):
            joined = {cluster for cluster, each in zip(clusters, checkpoints_S, strict=True) if each == checkpoint}
            clusters = [min(joined) if cluster in joined else cluster for cluster in clusters]
    return clusters


def cluster_means(values_Sx, clusters_S: Sequence[Hashable] | None) -> np.ndarray:
    """Return (C, ...): the mean of each cluster of seeds, in order of appearance. None: each seed is its own cluster.

    Seeds that share a pretrained checkpoint share its luck. They are one training run for an interval, not several.
    """
    values_Sx = np.asarray(values_Sx, dtype=np.float64)
    if clusters_S is None:
        return values_Sx
    if len(clusters_S) != len(values_Sx):
        raise ValueError(f"{len(clusters_S)} clusters for {len(values_Sx)} seeds")
    members = {cluster: [s for s, c in enumerate(clusters_S) if c == cluster] for cluster in clusters_S}
    return np.stack([values_Sx[rows].mean(axis=0) for rows in members.values()])


def two_way_bootstrap(
    a_SN,
    b_SN,
    seed: int,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    clusters_S: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Return the interval (low, high) of mean(a) - mean(b), over both test examples and training runs.

    clusters_S: what the training runs share, such as their pretrained checkpoint. Clusters are then drawn, not seeds.

    Resamples seeds and test examples, both with replacement: the pigeonhole bootstrap (Owen 2007, Annals of Applied
    Statistics 1(2)), which is rather too wide than too narrow. It draws S - 1 seeds at a time (Rao & Wu 1988: unbiased
    for few seeds). The standard error gives a Student interval, because percentiles of three seeds are too narrow
    (Hesterberg 2015, The American Statistician 69(4)). Degrees of freedom: Satterthwaite 1946, from the two variances.

    Simulated coverage of the 95 % interval when training runs vary most: 95 % with three or five seeds, 88 % with two.
    With one seed the variation between training runs is unknown and not in the interval.

    Raises ValueError for scores that do not pair up or fewer than two examples.
    """
    difference_SN = cluster_means(_difference(a_SN, b_SN), clusters_S)
    S, N = difference_SN.shape
    if N < 2:
        raise ValueError("an interval needs at least two test examples")
    mean = float(difference_SN.mean())

    # Draw examples with equal differences in every seed together: 0/1 scores have few such patterns, so this is fast.
    # Keep the order of first appearance, so that swapping a and b mirrors the interval exactly.
    patterns_SK, first_K, counts_K = np.unique(difference_SN, axis=1, return_index=True, return_counts=True)
    order_K = first_K.argsort()
    patterns_SK, share_K = patterns_SK[:, order_K], counts_K[order_K] / N

    generator = np.random.default_rng(seed)
    draws = max(S - 1, 1)
    means = np.empty(n_resamples)
    chunk = 1 + 2_000_000 // len(share_K)  # 16 MB of weights at a time
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        seed_weights_RS = generator.multinomial(draws, np.full(S, 1 / S), size) / draws
        example_weights_RK = generator.multinomial(N, share_K, size) / N
        means[start : start + size] = ((seed_weights_RS @ patterns_SK) * example_weights_RK).sum(axis=1)

    sources = [(difference_SN.mean(axis=0).var(ddof=1) / N, N - 1)]  # (variance of the mean, degrees of freedom)
    if S > 1:
        sources.append((difference_SN.mean(axis=1).var(ddof=1) / S, S - 1))
    total = sum(variance for variance, _ in sources)
    if total == 0:
        return mean, mean
    freedom = total**2 / sum(variance**2 / df for variance, df in sources)
    reach = float(stdtrit(freedom, (1 + confidence) / 2) * means.std(ddof=1))
    return mean - reach, mean + reach


def ratio_interval(above_SN, below_SN, clusters_N: Sequence[Hashable], seed: int = 0) -> list[float | None]:
    """Return [sum(above) / sum(below), low, high]: a share, with its 95 % interval over clusters and over models.

    above_SN, below_SN: of one model (N,) or of S models (S, N). Nothing below: [None, None, None].

    One model: a paired bootstrap that draws whole clusters; the middle 95 % of the resampled shares, widened for few
    clusters (Hesterberg 2015, The American Statistician 69(4)). Where all clusters have one share, resampling shows
    nothing: then Wilson's interval of as many values as there are clusters. Several models: the pigeonhole bootstrap
    and a Student interval, as in `two_way_bootstrap`.
    """
    above_SN, below_SN = (np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in (above_SN, below_SN))
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters_N))}
    members_N = [numbers[cluster] for cluster in clusters_N]
    above_SG, below_SG = (
        np.stack([np.bincount(members_N, weights=values_N) for values_N in each]) for each in (above_SN, below_SN)
    )
    for axis in (0, 1):  # clusters, then models, that count nothing
        kept = below_SG.sum(axis=axis) > 0
        above_SG, below_SG = (each.compress(kept, axis=1 - axis) for each in (above_SG, below_SG))
    if not below_SG.size:
        return [None, None, None]
    S, G = below_SG.shape
    value = float(above_SG.sum() / below_SG.sum())
    shares_G = above_SG.sum(axis=0) / below_SG.sum(axis=0)
    if np.ptp(shares_G) < 1e-12 and (S == 1 or np.ptp(above_SG.sum(axis=1) / below_SG.sum(axis=1)) < 1e-12):
        return [value, *wilson([value] * G)]
    generator = np.random.default_rng(seed)
    draws, R, chunk = max(S - 1, 1), 2000, 1 + 1_000_000 // G
    sums = []
    for start in range(0, R, chunk):
        size = min(chunk, R - start)
        seeds_RS = generator.multinomial(draws, np.full(S, 1 / S), size)
        clusters_RG = generator.multinomial(G, np.full(G, 1 / G), size)
        sums.append([(seeds_RS @ each_SG * clusters_RG).sum(axis=1) for each_SG in (above_SG, below_SG)])
    up_R, down_R = np.concatenate(sums, axis=1)
    resampled = up_R[down_R > 0] / down_R[down_R > 0]
    if S == 1:
        tail = float(ndtr(np.sqrt(G / (G - 1)) * stdtrit(G - 1, 0.025))) if G > 1 else 0.0
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return [value, float(low), float(high)]
    rest_SG = (above_SG - value * below_SG) / below_SG.mean()
    sources = [(rest_SG.mean(axis=0).var(ddof=1) / G, G - 1)] if G > 1 else []
    sources.append((rest_SG.mean(axis=1).var(ddof=1) / S, S - 1))
    total = sum(variance for variance, _ in sources)
    if total < 1e-18:
        return [value, *wilson([value] * G)]
    freedom = total**2 / sum(variance**2 / df for variance, df in sources)
    reach = float(stdtrit(freedom, 0.975) * resampled.std(ddof=1))
    return [value, max(0.0, value - reach), min(1.0, value + reach)]


def holm(p_values) -> np.ndarray:
    """Return p-values adjusted by Holm's method, in the given order (Holm 1979).

    Claiming only adjusted values below 0.05 keeps the chance of any false claim below 5 %.
    """
    p = np.asarray(list(p_values), dtype=np.float64)
    order = p.argsort()
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))  # the smallest times n, the next times n - 1
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def _difference(a_SN, b_SN) -> np.ndarray:
    a_SN, b_SN = np.asarray(a_SN, dtype=np.float64), np.asarray(b_SN, dtype=np.float64)
    if a_SN.shape != b_SN.shape or a_SN.ndim != 2 or not a_SN.size:
        raise ValueError(f"scores must pair up as (seeds, examples), not {a_SN.shape} and {b_SN.shape}")
    difference_SN = a_SN - b_SN
    if not np.isfinite(difference_SN).all():
        raise ValueError("scores must be finite")
    return difference_SN
