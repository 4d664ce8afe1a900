"""Sentences of a document: split it, mark them for a model, and choose some by their scores."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from decero.data.special_tokens import TEXT

ENDS = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|(?<=[。！？])|\n\s*\n")
WORD = re.compile(r"\w+")


def sentences_of(text: str) -> list[str]:
    """Split a document behind each . ! ? … that a space follows, behind 。！？, and at empty lines.

    A line break inside a sentence becomes a space. Parts without a letter or digit are left out. An abbreviation with a
    point ends a sentence, too.
    """
    ends = [0, *(match.end() for match in ENDS.finditer(text)), len(text)]
    parts = (" ".join(text[a:b].split()) for a, b in pairwise(ends))
    return [part for part in parts if WORD.search(part)]


def mark_sentences(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], max_length: int
) -> tuple[list[int], list[int], bool]:
    """Return the token ids of a document, the place of each sentence's first token, and whether something is cut.

    Each sentence has the tokenizer's special tokens around it, so with BERT's the places are those of [CLS]. Sentences
    that begin behind `max_length` tokens have no place. Source: Liu & Lapata 2019, section 3.1.
    """
    encoded = tokenizer(list(sentences) or [""], **TEXT)["input_ids"]
    parts = [ids or [tokenizer.pad_token_id] for ids in encoded]
    ids = [token for part in parts for token in part]
    starts = np.cumsum([0, *map(len, parts[:-1])]).tolist() if sentences else []
    return ids[:max_length], [place for place in starts if place < max_length], len(ids) > max_length


def choose_sentences(
    sentences: Sequence[str], scores: Sequence[float], most: int, trigram_blocking: bool = True
) -> list[int]:
    """Return the numbers of the `most` best sentences that have a score, in document order.

    trigram_blocking: skip a sentence that shares three successive words with one that is chosen already (Paulus et al.
    2018, section 2.5).
    """
    chosen: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for number in np.argsort(-np.asarray(scores), kind="stable")[: len(sentences)].tolist():
        words = WORD.findall(sentences[number].lower())
        trigrams = set(zip(words, words[1:], words[2:], strict=False))
        if len(chosen) == most:
            break
        if not (trigram_blocking and trigrams & seen):
            chosen.append(number)
            seen |= trigrams
    return sorted(chosen)
