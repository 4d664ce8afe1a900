"""Generated text against references: BLEU, chrF, ROUGE, exact match; and what a likelihood is worth a byte or a token.

BLEU, chrF and ROUGE go from 0 to 100, as their papers and tools print them; exact match and token F1 from 0 to 1, as
shares do elsewhere in this package. More is better for all. `text_signatures` gives what must be printed next to them.

ROUGE and token F1 compare words: NFC, lower case, runs of letters, marks, digits and `_` of any script. The tokenizer
of the rouge-score package keeps a-z and 0-9 alone ("mañana" is two words to it, Greek is none). A script without spaces
gives one word a clause: use chrF there.
"""

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import regex  # its \w holds combining marks, without which Hindi words fall apart; that of `re` does not

from decero.errors import UserError, did_you_mean
from decero.evaluation.corpus_tests import ratio

TEXT_METRICS = {  # the first of each is its main metric
    "translation": ("bleu", "chrf"),
    "summarization": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    "text": ("exact_match", "token_f1"),
}
WORDS = r"\w+"


def compute_text_metrics(kind: str, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """All metrics of TEXT_METRICS[kind], of N hypotheses and one reference each; an empty hypothesis earns nothing.

    Raises UserError for an unknown kind, ValueError for lists that do not pair up or are empty.
    """
    return _of(kind, (translation_metrics, summary_metrics, exact_metrics))(hypotheses, references)


def text_signatures(kind: str) -> dict[str, str]:
    """Metric -> its signature, for all of TEXT_METRICS[kind]: scores under different ones are not comparable."""
    return _of(kind, (translation_signatures, summary_signatures, exact_signatures))()


def translation_metrics(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (Papineni et al. 2002) and chrF2 (Popović 2015) with sacreBLEU's defaults (Post 2018), 0 to 100.

    Takes text as people write it, not tokenized. Raises as compute_text_metrics does.
    """
    check_pairs(hypotheses, references)
    found = {name: metric.corpus_score(list(hypotheses), [list(references)]) for name, metric in _sacrebleu().items()}
    return {name: float(score.score) for name, score in found.items()}


def translation_signatures() -> dict[str, str]:
    """sacreBLEU's own signatures: `{"bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0", ...}`."""
    for metric in _sacrebleu().values():
        metric.corpus_score(["one"], [["one"]])  # a signature tells the number of references: it wants to have seen one
    return {name: str(metric.get_signature()) for name, metric in _sacrebleu().items()}


def summary_metrics(hypotheses: Sequence[str], references: Sequence[str], stemmer: bool = False) -> dict[str, float]:
    """Mean ROUGE-1, -2, -L, -Lsum F1 over the examples, 0 to 100 (Lin 2004, ACL workshop), by Google's rouge-score.

    rougeLsum takes every line for a sentence and equals rougeL where there is one line.
    stemmer: Porter's, of words longer than three letters. It is for English.
    Raises as compute_text_metrics does.
    """
    check_pairs(hypotheses, references)
    found = rouge_examples(hypotheses, references, stemmer)
    return {name: float(scores.mean()) for name, scores in found.items()}


def summary_signatures(stemmer: bool = False) -> dict[str, str]:
    """In the manner of sacreBLEU: `{"rouge1": "nrefs:1|case:lc|norm:NFC|tok:\\w+|stem:no|...", ...}`."""
    stem = "porter" if stemmer else "no"
    score = "score:f1|avg:examples"
    settings = f"nrefs:1|case:lc|norm:NFC|tok:{WORDS}|stem:{stem}|{score}|rouge-score:{version('rouge-score')}"
    return {name: settings + "|sent:newline" * (name == "rougeLsum") for name in TEXT_METRICS["summarization"]}


def exact_metrics(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Share of exact matches and mean F1 of the words in common (Rajpurkar et al. 2016, section 6.1), 0 to 1.

    Unlike SQuAD's script, which is for English, no article is dropped, and an exact match minds case and punctuation;
    how much white space there is, and how an accent is encoded, matter to neither. Raises as compute_text_metrics does.
    """
    check_pairs(hypotheses, references)
    return {name: float(scores.mean()) for name, scores in exact_examples(hypotheses, references).items()}


def exact_signatures() -> dict[str, str]:
    return {
        "exact_match": "nrefs:1|case:mixed|norm:NFC|space:one",
        "token_f1": f"nrefs:1|case:lc|norm:NFC|tok:{WORDS}|score:f1|avg:examples",
    }


def perplexity(total_nats: float, num_tokens: int) -> float:
    """exp of the mean loss; inf where that is too large. Only models with the same tokenizer are comparable by it.

    total_nats: -log likelihood *summed* over all num_tokens scored tokens of the set. A mean of the means of batches
    would depend on how the set was cut into batches.
    Raises UserError for NaN, ValueError for less than no nats or no tokens.
    """
    mean = _nats_each(total_nats, num_tokens, "num_tokens")
    return math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """-log2 likelihood of the text by its length in UTF-8: comparable over tokenizers, and with a compressor.

    total_nats as for perplexity, over tokens that cover all num_bytes; raises as perplexity does.
    """
    return _nats_each(total_nats, num_bytes, "num_bytes") / math.log(2)


def words(text: str) -> list[str]:
    """The words that ROUGE and token F1 compare: see the module."""
    return regex.findall(WORDS, unicodedata.normalize("NFC", text.lower()))


def rouge_examples(
    hypotheses: Sequence[str], references: Sequence[str], stemmer: bool = False
) -> dict[str, np.ndarray]:
    """ROUGE F1 of every example, float64 (N,) a metric, 0 to 100: what paired tests compare."""
    names, scorer = TEXT_METRICS["summarization"], _rouge(stemmer)
    pairs = zip(hypotheses, references, strict=True)
    found = [scorer.score(target=reference, prediction=hypothesis) for hypothesis, reference in pairs]
    return {name: 100 * np.array([scores[name].fmeasure for scores in found]) for name in names}


def exact_examples(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Exact match and token F1 of every example, float64 (N,), 0 to 1. Two texts without words: 1 where they match."""
    same, f1 = [], []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        ours, theirs = Counter(words(hypothesis)), Counter(words(reference))
        same.append(float(_plain(hypothesis) == _plain(reference)))
        length = ours.total() + theirs.total()
        f1.append(2 * (ours & theirs).total() / length if length else same[-1])
    return {"exact_match": np.array(same), "token_f1": np.array(f1)}


def sufficient_statistics(
    metric: str, hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
    """What every example adds to a metric, float64 (N, K), and the metric of a sum of such rows (K,).

    BLEU and chrF are no means over examples: their K counts (of n-grams, of lengths) add up, the scores do not.
    Raises UserError for an unknown metric, ValueError as compute_text_metrics does.
    """
    check_pairs(hypotheses, references)
    if metric in TEXT_METRICS["translation"]:
        corpus = _sacrebleu()[metric]  # the two private methods are those that sacrebleu.significance works with
        counts = corpus._extract_corpus_statistics(list(hypotheses), [list(references)])
        return np.array(counts, dtype=np.float64), lambda sum_K: float(corpus._compute_score_from_stats(sum_K).score)
    if metric in TEXT_METRICS["summarization"]:
        scores_N = rouge_examples(hypotheses, references)[metric]
    elif metric in TEXT_METRICS["text"]:
        scores_N = exact_examples(hypotheses, references)[metric]
    else:
        names = [name for names in TEXT_METRICS.values() for name in names]
        raise UserError(f"{metric!r} is no text metric{did_you_mean(metric, names)}  (all: {', '.join(names)})")
    return np.stack([scores_N, np.ones_like(scores_N)], axis=1), ratio


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """ValueError unless both are lists of the same number of strings, at least one."""
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a list of strings, one an example")
    if len(hypotheses) != len(references) or not len(hypotheses):
        raise ValueError(f"{len(hypotheses)} hypotheses do not pair up with {len(references)} references")


class _Words:
    """The tokenizer that rouge-score asks for."""

    def __init__(self, stem: Callable[[str], str] | None):
        self.stem = stem

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        return [self.stem(word) if len(word) > 3 else word for word in found] if self.stem else found


@functools.cache
def _rouge(stemmer: bool):
    from nltk.stem.porter import PorterStemmer  # nltk takes seconds to import; its stemmer needs no data
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(TEXT_METRICS["summarization"], tokenizer=_Words(PorterStemmer().stem if stemmer else None))


@functools.cache
def _sacrebleu() -> dict:
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU(), "chrf": CHRF()}


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _of(kind: str, choices: tuple[Callable, ...]) -> Callable:
    if kind not in TEXT_METRICS:
        near = did_you_mean(kind, TEXT_METRICS)
        raise UserError(f"{kind!r} is no kind of text metrics{near}  (all: {', '.join(TEXT_METRICS)})")
    return dict(zip(TEXT_METRICS, choices, strict=True))[kind]


def _nats_each(total_nats: float, number: int, name: str) -> float:
    if math.isnan(total_nats):
        raise UserError("the loss is NaN: the run diverged; lower optim.learning_rate")
    if total_nats < 0 or number < 1:
        raise ValueError(f"a likelihood takes total_nats >= 0 and {name} >= 1, not {total_nats} and {number}")
    return float(total_nats) / number
