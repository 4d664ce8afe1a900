"""Extractive summaries: the sentences that an oracle would choose, which knows the summary."""

from collections import Counter
from collections.abc import Sequence

from decero.evaluation.text_metrics import words


def greedy_oracle(sentences: Sequence[str], summary: str, most: int) -> list[int]:
    """Choose the sentences that greedily raise ROUGE-1 F1 + ROUGE-2 F1 against the summary, in document order.

    Each step takes the sentence that raises the sum most, the earlier one of equals. It ends when none raises it, or
    after `most` sentences. Words are those of `rouge_examples`, without a stemmer; pairs of words across two sentences
    do not count. Empty for a summary that shares no word.
    Source: Nallapati et al. 2017, section 3; ROUGE as in Liu & Lapata 2019, section 4.1.
    """
    wanted = [_grams(summary, n) for n in (1, 2)]
    grams = [[_grams(sentence, n) for n in (1, 2)] for sentence in sentences]
    chosen: list[int] = []
    have, best = [Counter[tuple](), Counter[tuple]()], 0.0
    while len(chosen) < most:
        gains = [
            (sum(_f1(have[n] + grams[i][n], wanted[n]) for n in (0, 1)), -i)
            for i in range(len(sentences))
            if i not in chosen
        ]
        score, place = max(gains, default=(0.0, 0))
        if score <= best:
            break
        best = score
        chosen.append(-place)
        have = [have[n] + grams[-place][n] for n in (0, 1)]
    return sorted(chosen)


def _grams(text: str, n: int) -> Counter[tuple]:
    found = words(text)
    return Counter(zip(*(found[start:] for start in range(n)), strict=False))


def _f1(candidate: Counter[tuple], reference: Counter[tuple]) -> float:
    total = candidate.total() + reference.total()
    return 2 * (candidate & reference).total() / total if total else 0.0
