"""Score generated text (BLEU, chrF, ROUGE, exact match, token F1) and likelihoods (perplexity, bits per byte).

BLEU, chrF and ROUGE are 0 to 100, as in their papers and tools. Exact match and token F1 are 0 to 1, like other shares
in this package. Higher is better for all. Print the signatures of `text_signatures` next to the scores.

ROUGE and token F1 compare words: after NFC and lower-casing, runs of letters, marks, digits and `_` of any script. The
tokenizer of the rouge-score package keeps only a-z and 0-9: it cuts "mañana" in two and drops Greek. In a script
without spaces each character is a word (`scripts`). So it is for BLEU, whose tokenizer follows from the references
unless it is given.
"""

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np

from decero.errors import UserError, did_you_mean, root_line
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.scripts import WORD, bleu_tokenizer

TEXT_METRICS = {  # the first of each kind is its main metric
    "translation": ("bleu", "chrf"),
    "summarization": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    "text": ("exact_match", "token_f1"),
}
WORDS = r"\w+|unspaced:char"
AUTO = "auto"  # choose BLEU's tokenizer by the script of the references


def compute_text_metrics(
    kind: str, hypotheses: Sequence[str], references: Sequence[str], tokenize: str = AUTO
) -> dict[str, float]:
    """Compute all metrics of TEXT_METRICS[kind] for N hypotheses with one reference each.

    An empty hypothesis scores 0. tokenize: of BLEU, as for `translation_metrics`.
    Raises UserError for an unknown kind; ValueError for lists that are empty or do not pair up.
    """
    translate = functools.partial(translation_metrics, tokenize=tokenize)
    return _choose(kind, (translate, summary_metrics, exact_metrics))(hypotheses, references)


def text_signatures(kind: str, tokenize: str = "13a") -> dict[str, str]:
    """Return metric -> signature for TEXT_METRICS[kind]. Only scores with equal signatures are comparable."""
    translate = functools.partial(translation_signatures, tokenize)
    return _choose(kind, (translate, summary_signatures, exact_signatures))()


def tokenizer_for_bleu(tokenize: str, references: Sequence[str]) -> str:
    """Return sacreBLEU's name of the tokenizer: the one given, or for `auto` that of the script of the references.

    Raises UserError for an unknown one, and for one whose package is missing.
    """
    found = bleu_tokenizer(references) if tokenize == AUTO else tokenize
    _sacrebleu(found)
    return found


def translation_metrics(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = AUTO) -> dict[str, float]:
    """Compute corpus BLEU and chrF2 with sacreBLEU's defaults, 0 to 100.

    Takes plain text, not tokenized text. tokenize: `auto` or a tokenizer of sacreBLEU (13a, zh, ja-mecab, ...), only
    for BLEU. Raises as `compute_text_metrics` and `tokenizer_for_bleu`.
    Source: Papineni et al. 2002; Popović 2015; Post 2018.
    """
    check_pairs(hypotheses, references)
    metrics = _sacrebleu(tokenizer_for_bleu(tokenize, references))
    scores = {name: metric.corpus_score(list(hypotheses), [list(references)]) for name, metric in metrics.items()}
    return {name: float(score.score) for name, score in scores.items()}


def translation_signatures(tokenize: str = "13a") -> dict[str, str]:
    """Return sacreBLEU's signatures, such as "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"."""
    metrics = _sacrebleu(tokenize)
    for metric in metrics.values():
        metric.corpus_score(["one"], [["one"]])  # the signature has the number of references, known after scoring
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


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


def likelihood_figures(nats: float, tokens: int, size: int | None, pseudo: bool = False) -> dict[str, float]:
    """Return `perplexity` and, if the size in bytes is known, `bits_per_byte`.

    pseudo: the nats are those of a pseudo-likelihood, which is no probability of the text. The names then begin with
    `pseudo_`, because such numbers do not compare with those of causal models.
    """
    found = {"perplexity": perplexity(nats, tokens)} | (
        {} if size is None else {"bits_per_byte": bits_per_byte(nats, size)}
    )
    return {f"pseudo_{name}" if pseudo else name: value for name, value in found.items()}


def words(text: str) -> list[str]:
    """Split text into the words that ROUGE and token F1 compare; see the module docstring."""
    return WORD.findall(unicodedata.normalize("NFC", text.lower()))


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


def answer_examples(hypotheses: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Return 1 where the words of an answer stand in the hypothesis, one after another, else 0; float64 (N,).

    Words are those of ROUGE here, so case and punctuation do not count. An answer without words is found nowhere.
    """
    found = []
    for hypothesis, answer in zip(hypotheses, answers, strict=True):
        said, wanted = words(hypothesis), words(answer)
        starts = range(len(said) - len(wanted) + 1) if wanted else ()
        found.append(float(any(said[start : start + len(wanted)] == wanted for start in starts)))
    return np.array(found)


def sufficient_statistics(
    metric: str, hypotheses: Sequence[str], references: Sequence[str], tokenize: str = AUTO
) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
    """Return counts per example, float64 (N, K), and a function from a sum of such rows (K,) to the metric.

    BLEU and chrF are not means over examples: their K counts (n-grams, lengths) can be added, their scores cannot.
    tokenize: of BLEU, as for `translation_metrics`.
    Raises UserError for an unknown metric; ValueError as `compute_text_metrics`.
    """
    check_pairs(hypotheses, references)
    if metric in TEXT_METRICS["translation"]:
        corpus = _sacrebleu(tokenizer_for_bleu(tokenize, references))[
            metric
        ]  # sacrebleu.significance uses the same two private methods
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
def _sacrebleu(tokenize: str) -> dict:
    from sacrebleu.metrics import BLEU, CHRF

    known = sorted(BLEU.TOKENIZERS)
    if tokenize not in known:
        raise UserError(
            f"unknown tokenizer {tokenize} of BLEU{did_you_mean(tokenize, known)}  (all: {', '.join(known)})"
        )
    try:
        return {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}
    except Exception as error:  # some need a package or a download, and fail in many ways
        extra = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}.get(tokenize, "sentencepiece")
        raise UserError(
            f"tokenizer {tokenize} of BLEU does not work ({root_line(error)[:200]}); install {extra}, or choose another"
        ) from error


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
