"""Score generated text (BLEU, chrF, ROUGE, exact match, token F1) and likelihoods (perplexity, bits per byte).

BLEU, chrF and ROUGE are 0 to 100, as in their papers and tools. Exact match and token F1 are 0 to 1, like other shares
in this package. Higher is better for all. Print the signatures of `text_signatures` next to the scores.

ROUGE and token F1 compare words: after NFC and lower-casing, runs of letters, marks, digits and `_` of any script. The
tokenizer of the rouge-score package keeps only a-z and 0-9: it cuts "mañana" in two and drops Greek. In a script
without spaces a word is a whole clause; use chrF there.
"""

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import regex  # unlike in `re`, \w matches combining marks, so Hindi words stay whole

from decero.errors import UserError, did_you_mean
from decero.evaluation.corpus_tests import ratio

TEXT_METRICS = {  # the first of each kind is its main metric
    "translation": ("bleu", "chrf"),
    "summarization": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    "text": ("exact_match", "token_f1"),
}
WORDS = r"\w+"


def compute_text_metrics(kind: str, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute all metrics of TEXT_METRICS[kind] for N hypotheses with one reference each.

    An empty hypothesis scores 0. Raises UserError for an unknown kind; ValueError for lists that are empty or do not
    pair up.
    """
    return _choose(kind, (translation_metrics, summary_metrics, exact_metrics))(hypotheses, references)


def text_signatures(kind: str) -> dict[str, str]:
    """Return metric -> signature for TEXT_METRICS[kind]. Only scores with equal signatures are comparable."""
    return _choose(kind, (translation_signatures, summary_signatures, exact_signatures))()


def translation_metrics(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute corpus BLEU and chrF2 with sacreBLEU's defaults, 0 to 100.

    Takes plain text, not tokenized text. Raises as `compute_text_metrics`.
    Source: Papineni et al. 2002; Popović 2015; Post 2018.
    """
    check_pairs(hypotheses, references)
    scores = {name: metric.corpus_score(list(hypotheses), [list(references)]) for name, metric in _sacrebleu().items()}
    return {name: float(score.score) for name, score in scores.items()}


def translation_signatures() -> dict[str, str]:
    """Return sacreBLEU's signatures, such as "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"."""
    for metric in _sacrebleu().values():
        metric.corpus_score(["one"], [["one"]])  # the signature has the number of references, known after scoring
    return {name: str(metric.get_signature()) for name, metric in _sacrebleu().items()}


def summary_metrics(hypotheses: Sequence[str], references: Sequence[str], stemmer: bool = False) -> dict[str, float]:
    """Compute mean ROUGE-1, -2, -L and -Lsum F1 over the examples, 0 to 100, with Google's rouge-score.

    rougeLsum treats every line as a sentence; with one line it equals rougeL.
    stemmer: use Porter's stemmer, for words longer than three letters; only for English.
    Raises as `compute_text_metrics`. Source: Lin 2004, ACL workshop.
    """
    check_pairs(hypotheses, references)
    scores_of = rouge_examples(hypotheses, references, stemmer)
    return {name: float(scores.mean()) for name, scores in scores_of.items()}


def summary_signatures(stemmer: bool = False) -> dict[str, str]:
    """Return signatures in sacreBLEU's style: `{"rouge1": "nrefs:1|case:lc|norm:NFC|tok:\\w+|stem:no|...", ...}`."""
    stem = "porter" if stemmer else "no"
    score = "score:f1|avg:examples"
    settings = f"nrefs:1|case:lc|norm:NFC|tok:{WORDS}|stem:{stem}|{score}|rouge-score:{version('rouge-score')}"
    return {name: settings + "|sent:newline" * (name == "rougeLsum") for name in TEXT_METRICS["summarization"]}


def exact_metrics(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute the share of exact matches and the mean token F1, 0 to 1 (Rajpurkar et al. 2016, section 6.1).

    Unlike SQuAD's script, which is for English, articles are kept, and an exact match depends on case and punctuation.
    Neither metric depends on the amount of white space or the encoding of accents. Raises as `compute_text_metrics`.
    """
    check_pairs(hypotheses, references)
    return {name: float(scores.mean()) for name, scores in exact_examples(hypotheses, references).items()}


def exact_signatures() -> dict[str, str]:
    return {
        "exact_match": "nrefs:1|case:mixed|norm:NFC|space:one",
        "token_f1": f"nrefs:1|case:lc|norm:NFC|tok:{WORDS}|score:f1|avg:examples",
    }


def perplexity(total_nats: float, num_tokens: int) -> float:
    """Return exp of the mean loss, inf on overflow. Comparable only between models with the same tokenizer.

    total_nats: -log likelihood *summed* over all num_tokens scored tokens. A mean of batch means would depend on how
    the set was cut into batches.
    Raises UserError for NaN; ValueError for negative total_nats or no tokens.
    """
    mean = _mean_nats(total_nats, num_tokens, "num_tokens")
    return math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Return -log2 likelihood per UTF-8 byte: comparable between tokenizers, and with a compressor.

    total_nats: as for `perplexity`, over tokens that cover all num_bytes. Raises as `perplexity`.
    """
    return _mean_nats(total_nats, num_bytes, "num_bytes") / math.log(2)


def words(text: str) -> list[str]:
    """Split text into the words that ROUGE and token F1 compare; see the module docstring."""
    return regex.findall(WORDS, unicodedata.normalize("NFC", text.lower()))


def rouge_examples(
    hypotheses: Sequence[str], references: Sequence[str], stemmer: bool = False
) -> dict[str, np.ndarray]:
    """Return metric -> ROUGE F1 of every example, float64 (N,), 0 to 100, for paired tests."""
    names, scorer = TEXT_METRICS["summarization"], _rouge(stemmer)
    pairs = zip(hypotheses, references, strict=True)
    examples = [scorer.score(target=reference, prediction=hypothesis) for hypothesis, reference in pairs]
    return {name: 100 * np.array([scores[name].fmeasure for scores in examples]) for name in names}


def exact_examples(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Return exact match and token F1 of every example, float64 (N,), 0 to 1.

    For two texts without words, F1 is 1 if they match and 0 if not.
    """
    exact, f1 = [], []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        predicted, expected = Counter(words(hypothesis)), Counter(words(reference))
        exact.append(float(_plain(hypothesis) == _plain(reference)))
        length = predicted.total() + expected.total()
        f1.append(2 * (predicted & expected).total() / length if length else exact[-1])
    return {"exact_match": np.array(exact), "token_f1": np.array(f1)}


def sufficient_statistics(
    metric: str, hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
    """Return counts per example, float64 (N, K), and a function from a sum of such rows (K,) to the metric.

    BLEU and chrF are not means over examples: their K counts (n-grams, lengths) can be added, their scores cannot.
    Raises UserError for an unknown metric; ValueError as `compute_text_metrics`.
    """
    check_pairs(hypotheses, references)
    if metric in TEXT_METRICS["translation"]:
        corpus = _sacrebleu()[metric]  # sacrebleu.significance uses the same two private methods
        counts = corpus._extract_corpus_statistics(list(hypotheses), [list(references)])
        return np.array(counts, dtype=np.float64), lambda sum_K: float(corpus._compute_score_from_stats(sum_K).score)
    if metric in TEXT_METRICS["summarization"]:
        scores_N = rouge_examples(hypotheses, references)[metric]
    elif metric in TEXT_METRICS["text"]:
        scores_N = exact_examples(hypotheses, references)[metric]
    else:
        names = [name for names in TEXT_METRICS.values() for name in names]
        raise UserError(f"unknown text metric {metric!r}{did_you_mean(metric, names)}  (all: {', '.join(names)})")
    return np.stack([scores_N, np.ones_like(scores_N)], axis=1), ratio


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raise ValueError unless both are non-empty lists of strings of equal length."""
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a list of strings, one per example")
    if len(hypotheses) != len(references) or not len(hypotheses):
        raise ValueError(f"{len(hypotheses)} hypotheses do not pair up with {len(references)} references")


class _Words:
    """The tokenizer interface of rouge-score."""

    def __init__(self, stem: Callable[[str], str] | None):
        self.stem = stem

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        return [self.stem(word) if len(word) > 3 else word for word in found] if self.stem else found


@functools.cache
def _rouge(stemmer: bool):
    from nltk.stem.porter import PorterStemmer  # here, because nltk takes seconds to import; this needs no nltk data
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(TEXT_METRICS["summarization"], tokenizer=_Words(PorterStemmer().stem if stemmer else None))


@functools.cache
def _sacrebleu() -> dict:
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU(), "chrf": CHRF()}


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _choose(kind: str, choices: tuple[Callable, ...]) -> Callable:
    if kind not in TEXT_METRICS:
        near = did_you_mean(kind, TEXT_METRICS)
        raise UserError(f"unknown kind of text metrics {kind!r}{near}  (all: {', '.join(TEXT_METRICS)})")
    return dict(zip(TEXT_METRICS, choices, strict=True))[kind]


def _mean_nats(total_nats: float, number: int, name: str) -> float:
    if math.isnan(total_nats):
        raise UserError("the loss is NaN: the run diverged; lower optim.learning_rate")
    if total_nats < 0 or number < 1:
        raise ValueError(f"total_nats must be >= 0 and {name} >= 1, not {total_nats} and {number}")
    return float(total_nats) / number
