"""Score extracted answers: exact match and F1 of words, as the official script of SQuAD 2, and the no-answer threshold.

Source: Rajpurkar et al. 2018, and its script evaluate-v2.0.py. Scores are from 0 to 1; the script prints percent.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

ARTICLES = ("a", "an", "the")
PUNCTUATION = str.maketrans("", "", string.punctuation)
GROUPS = ("has_answer_f1", "has_answer_exact_match", "no_answer_accuracy")
ANSWER_METRICS = ("f1", "exact_match", *GROUPS)
LENGTHS = (0, 500, 1000, 2000, 4000)  # characters of a context


def normalize_answer(text: str, articles: Sequence[str] = ARTICLES) -> str:
    """Lower the text, remove ASCII punctuation, then articles, and join its words with single spaces."""
    text = text.lower().translate(PUNCTUATION)
    if articles:
        text = re.sub(rf"\b({'|'.join(re.escape(word.lower()) for word in articles)})\b", " ", text)
    return " ".join(text.split())


def answer_scores(
    prediction: str, references: Sequence[str], articles: Sequence[str] = ARTICLES
) -> tuple[float, float]:
    """Return exact match and F1 of an answer, each with the reference that it fits best.

    prediction: "" for no answer. references: empty where there is no answer. Where either side is empty, F1 is 1 if
    both are, else 0.
    """
    said = normalize_answer(prediction, articles)
    wanted = [text for text in (normalize_answer(each, articles) for each in references) if text] or [""]
    return float(said in wanted), max(_word_f1(said.split(), each.split()) for each in wanted)


def _word_f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def mean_scores(exact_N: np.ndarray, f1_N: np.ndarray, answerable_N: np.ndarray) -> dict[str, float]:
    """Return the means over all questions and, where both kinds occur, over those with and without an answer.

    answerable_N: bool. `no_answer_accuracy` is NoAns_exact of the official script, which equals NoAns_f1.
    """
    found = {"f1": float(f1_N.mean()), "exact_match": float(exact_N.mean())}
    if answerable_N.any() and not answerable_N.all():
        found["has_answer_f1"] = float(f1_N[answerable_N].mean())
        found["has_answer_exact_match"] = float(exact_N[answerable_N].mean())
        found["no_answer_accuracy"] = float(exact_N[~answerable_N].mean())
    return found


def best_threshold(margins_N: np.ndarray, answered_N: np.ndarray, refused_N: np.ndarray) -> float:
    """Return the threshold with the highest sum of scores: a question with a larger margin gets no answer.

    margins_N: score of no answer minus that of the best answer. answered_N, refused_N: the score of each question if
    it gets its best answer, and if it gets none. The threshold lies midway between two margins, so that rounding moves
    no question across it. Of equally good thresholds, the lowest is taken.
    """
    order = np.argsort(margins_N, kind="stable")
    margins, gain = margins_N[order], (answered_N - refused_N)[order]
    totals = np.concatenate([[0.0], np.cumsum(gain)])  # after answering the first k questions
    apart = np.concatenate([[True], margins[1:] > margins[:-1], [True]])
    k = int(np.argmax(np.where(apart, totals, -np.inf)))
    finite = margins[np.isfinite(margins)]
    ends = (finite[0] - 1, finite[-1] + 1) if len(finite) else (-1.0, 1.0)
    below = margins[k - 1] if k > 0 else -np.inf
    above = margins[k] if k < len(margins) else np.inf
    if not np.isfinite(below):
        return float(ends[0])
    return float((below + above) / 2) if np.isfinite(above) else float(ends[1])


def by_context_length(lengths_N: np.ndarray, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the mean of each column for contexts of similar length, shortest first. Empty bins are left out.

    lengths_N: characters of the context of each question.
    """
    found: list[dict[str, Any]] = []
    for low, high in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        inside = (lengths_N >= low) & (lengths_N < (high or np.inf))
        if inside.any():
            means = {name: float(values[inside].mean()) for name, values in columns.items()}
            found.append({"from": low, "to": high, "questions": int(inside.sum())} | means)
    return found
