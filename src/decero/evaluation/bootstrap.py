"""Compare two systems on one test set by a corpus metric: is the difference due to the choice of test examples?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from decero.evaluation.text_metrics import sufficient_statistics


class PairedBootstrap(NamedTuple):
    difference: float  # metric of a minus metric of b, on the whole test set
    low: float  # lower end of the 95 % interval
    high: float  # upper end
    p: float  # two-sided


def paired_bootstrap(
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    references: Sequence[str],
    metric: str = "bleu",
    num_resamples: int = 1000,
    seed: int = 0,
    tokenize: str = "auto",
) -> PairedBootstrap:
    """Resample the N test examples in pairs, for any metric of TEXT_METRICS (Koehn 2004, EMNLP).

    Each resample draws N examples with replacement, the same for both systems, and scores both. The interval holds the
    middle 95 % of the differences. p is twice the share of resamples on the rarer side of 0 (Koehn counts one side).
    Ties count on both sides, and p is at least 2/(num_resamples + 1). Swapping a and b flips all signs exactly.

    The result does not include the variation between training runs; that needs several seeds. The counts are those of
    sacreBLEU's PairedTest, which gives no interval and takes its seed from the environment.

    tokenize: of BLEU, as for `translation_metrics`.
    Raises UserError for an unknown metric; ValueError for lists that do not pair up, fewer than 2 examples, or fewer
    than 40 resamples (with fewer, no resample is outside the interval).
    """
    if len(references) < 2 or num_resamples < 40:
        raise ValueError(
            f"a bootstrap needs at least 2 examples and 40 resamples, not {len(references)} and {num_resamples}"
        )
    a_NK, score = sufficient_statistics(metric, hypotheses_a, references, tokenize)
    b_NK, _ = sufficient_statistics(metric, hypotheses_b, references, tokenize)

    N = len(references)
    generator = np.random.default_rng(seed)
    differences_R = np.empty(num_resamples)
    chunk = 1 + 2_000_000 // N  # 16 MB of draws at a time
    for start in range(0, num_resamples, chunk):
        draws_RN = generator.multinomial(N, np.full(N, 1 / N), min(chunk, num_resamples - start)).astype(np.float64)
        pairs = zip(draws_RN @ a_NK, draws_RN @ b_NK, strict=True)
        differences_R[start : start + len(draws_RN)] = [score(a_K) - score(b_K) for a_K, b_K in pairs]

    differences_R.sort()
    outside = num_resamples // 40  # resamples beyond each end of the interval
    rarer = min((differences_R <= 0).sum(), (differences_R >= 0).sum())
    return PairedBootstrap(
        difference=score(a_NK.sum(axis=0)) - score(b_NK.sum(axis=0)),
        low=float(differences_R[outside]),
        high=float(differences_R[-1 - outside]),
        p=min(1.0, 2 * (int(rarer) + 1) / (num_resamples + 1)),
    )
