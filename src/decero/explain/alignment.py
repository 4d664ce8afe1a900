"""Align the words of a translation with those of its source by the cross-attention of an encoder-decoder."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from decero.errors import UserError
from decero.explain.recording import Attention, Piece, Recording

# Letters with marks, digits, and what joins them inside a word; or a run of any other signs, such as punctuation
WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’.,\-][\p{L}\p{M}\p{N}]+)*|[^\p{L}\p{M}\p{N}\s]+")
NOT_AN_ALIGNER = {
    "en": "Cross-attention is not a word aligner: a head may look at the word before or at the end of the text.",
    "es": "La atención cruzada no es un alineador de palabras: una cabeza puede mirar la palabra anterior o el final "
    "del texto.",
}
MEASURED = {
    "en": "Of {total} words that occur once on both sides in the same spelling, it finds {found}.",
    "es": "De {total} palabras que aparecen una vez en cada lado con la misma grafía, encuentra {found}.",
}
NOT_MEASURED = {
    "en": "No word occurs once on both sides in the same spelling, so its agreement was not measured.",
    "es": "Ninguna palabra aparece una vez en cada lado con la misma grafía; su acierto no se midió.",
}


@dataclass(frozen=True)
class Word:
    """One word of a text: start and end are characters, half open; pieces are numbers of the tokens that spell it."""

    text: str
    start: int
    end: int
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """Hold which source word each target word looks at most.

    weights: (target words, source words). The pieces of a source word are summed and those of a target word averaged,
        so a row sums to 1 minus its share of special tokens.
    special: (target words), the share of attention on special tokens, such as the end of the text.
    links: for each target word the number of the source word with the highest weight.
    anchors: (target word, source word) of each word that occurs once on both sides in the same spelling, such as a
        name or a number. found: how many of them are links.
    """

    source: list[Word]
    target: list[Word]
    weights: np.ndarray
    special: np.ndarray
    links: list[int]
    anchors: list[tuple[int, int]]
    found: int

    def caveat(self, language: str) -> str:
        """Say what cross-attention is not, and how often it was right where that can be measured."""
        measured = MEASURED[language] if self.anchors else NOT_MEASURED[language]
        return f"{NOT_AN_ALIGNER[language]} {measured.format(total=len(self.anchors), found=self.found)}"


def align(
    recording: Recording, *, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None
) -> Alignment:
    """Align the words of source and target by the mean cross-attention of some layers and heads.

    layers, heads: numbers from 0; None: all that were recorded. The row of a target token is the one that predicts it,
    which is the row of the token before it.

    Raises UserError for a recording without cross-attention or target, a layer or head that is not there, and a text
    without a word.
    """
    if (cross := recording.attentions.get("cross")) is None or recording.target is None:
        raise UserError(f"{recording.model}: an alignment needs cross-attention; use a model that translates")
    source, target = words_of(recording.text, cross.keys), words_of(recording.target, _predicted(cross))
    if not source or not target:
        raise UserError(f"{recording.model}: the {'target' if source else 'text'} has no word to align")
    weights_QK = mean_weights(cross, layers, heads)
    source_SK, target_TQ = _membership(source, len(cross.keys)), _membership(target, len(cross.queries))
    weights_TS = (target_TQ / target_TQ.sum(1, keepdims=True)) @ weights_QK @ source_SK.T
    links = weights_TS.argmax(1).tolist()
    anchors = _anchors(source, target)
    found = sum(links[t] == s for t, s in anchors)
    return Alignment(source, target, weights_TS, 1 - weights_TS.sum(1), links, anchors, found)


def mean_weights(
    attention: Attention, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None
) -> np.ndarray:
    """Return the mean weights over some layers and heads: (queries, keys). None: all that were recorded.

    Raises UserError for a layer or head that is not there.
    """
    chosen = sorted(attention.weights) if layers is None else list(layers)
    rows = list(range(attention.num_heads)) if heads is None else list(heads)
    for what, numbers, there in (
        ("layer", chosen, sorted(attention.weights)),
        ("head", rows, range(attention.num_heads)),
    ):
        for number in numbers:
            if number not in there:
                raise UserError(f"no {what} {number} in the {attention.kind}-attention; there are {_several(there)}")
    return np.mean([attention.weights[layer][rows].mean(0, dtype=np.float64) for layer in chosen], axis=0)


def words_of(text: str, pieces: Sequence[Piece]) -> list[Word]:
    """Group pieces to words. A piece belongs to the word that holds its first character that is not a space.

    Words without a piece (cut off, or normalised away) and special tokens are left out. Scripts without spaces give one
    word a run of letters.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    members: dict[tuple[int, int], list[int]] = {span: [] for span in spans}
    for number, piece in enumerate(pieces):
        if piece.start is None or piece.end is None:
            continue
        covered = text[piece.start : piece.end]
        first = piece.start + len(covered) - len(covered.lstrip())
        span = next(((start, end) for start, end in spans if start <= first < end and covered.strip()), None)
        if span is not None:
            members[span].append(number)
    return [Word(text[start:end], start, end, tuple(n)) for (start, end), n in members.items() if n]


def _predicted(cross: Attention) -> list[Piece]:
    """Return for each row the piece that it predicts: that of the next row. The last row predicts the end."""
    return [*cross.queries[1:], Piece(-1, "", None, None)]


def _membership(words: list[Word], num_pieces: int) -> np.ndarray:
    """Return (words, pieces): 1 where a piece belongs to a word."""
    belongs = np.zeros((len(words), num_pieces))
    for number, word in enumerate(words):
        belongs[number, list(word.pieces)] = 1
    return belongs


def _anchors(source: list[Word], target: list[Word]) -> list[tuple[int, int]]:
    """Pair words with a letter or digit that occur once on both sides in the same spelling."""
    counts = [Counter(word.text for word in words) for words in (source, target)]
    places = {word.text: number for number, word in enumerate(source)}
    return [
        (number, places[word.text]) for number, word in enumerate(target)
        if counts[0][word.text] == counts[1][word.text] == 1 and any(sign.isalnum() for sign in word.text)
    ]  # fmt: skip


def _several(there: Sequence[int]) -> str:
    return f"{len(there)}, from {there[0]} to {there[-1]}" if there else "none"
