"""Split texts into words, and words into rows of tokens: windows with a stride, each word scored in one of them.

Words are given by their characters, so that any text survives: emoji, combining marks, control characters, CRLF.
"""

import itertools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from decero.data.collators import IGNORED
from decero.data.special_tokens import special_tokens_around
from decero.data.tokenization import map_rows
from decero.data.windows import best_window, window_bounds
from decero.errors import UserError

Bounds = list[tuple[int, int]]  # first character and the one behind the last, of each word
NO_SPACES = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # scripts
OPENING, CLOSING = "\"'“‘«‹„([{<¿¡`", "\"'”’»›)]}>.,;:!?…%`"
ABBREVIATION = re.compile(r"(?:\w\.)+")  # J., U.S.


@cache
def _unit() -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M")
    marks = re.escape(marks)
    return re.compile(rf"[{NO_SPACES}][{marks}]*|(?:(?![{NO_SPACES}])[\w{marks}])+|\S")


def split_words(text: str) -> Bounds:
    """Return the words of a text: runs of letters, digits and marks, and each other character that is no space.

    In scripts without spaces (Chinese, Japanese, Thai ...) each letter is a word.
    """
    return [found.span() for found in _unit().finditer(text)]


def split_tokens(text: str) -> Bounds:
    """Return the words of a text much as corpora of words split them: at spaces, then punctuation at the edges.

    The full stop of an abbreviation (U.S.) stays, and the English 's is a word.
    """
    words: Bounds = []
    for start, stop in split_spaces(text):
        behind: Bounds = []
        if any(map(str.isalnum, text[start:stop])):
            while text[start] in OPENING:
                words.append((start, start + 1))
                start += 1
            while text[stop - 1] in CLOSING and not ABBREVIATION.fullmatch(text, start, stop):
                behind.append((stop - 1, stop))
                stop -= 1
            if stop - start > 2 and text[stop - 2 : stop].lower() in ("'s", "’s"):
                behind.append((stop - 2, stop))
                stop -= 2
        words += [(start, stop), *behind[::-1]]
    return words


def split_spaces(text: str) -> Bounds:
    """Return the words of a text that is split at spaces."""
    return [found.span() for found in re.finditer(r"\S+", text)]


SPLITTERS = {"text": split_words, "tokens": split_tokens, "spaces": split_spaces}


class Window(NamedTuple):
    """A row of tokens. places: of the tokens that are scored, one for each of `words`: numbers of words of the text."""

    input_ids: np.ndarray
    places: np.ndarray
    words: np.ndarray


@dataclass
class WordWindows:
    """Cut texts into windows of at most `max_length` tokens, with special tokens; neighbours share `stride` tokens.

    The first token of a word is scored, in the window where it has most context. A word from which the tokenizer makes
    no token (a control character) gets the unknown token, so each word is scored exactly once.

    Raises UserError for a stride that leaves no new token for a window.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    stride: int | None = None  # a quarter of the tokens in a window
    before: np.ndarray = field(init=False)
    after: np.ndarray = field(init=False)

    def __post_init__(self):
        self.before, self.after = (np.array(ids, dtype=np.int64) for ids in special_tokens_around(self.tokenizer))
        room = self.max_length - len(self.before) - len(self.after)
        if room < 1:
            raise UserError(f"data.max_length: {self.max_length} tokens leave no room beside special tokens; raise it")
        self.stride = room // 4 if self.stride is None else self.stride
        if self.stride >= room:
            raise UserError(
                f"data.stride: {self.stride} is not below the {room} tokens of text in a window; "
                "lower it, or raise data.max_length"
            )
        self.room = room
        ids = [getattr(self.tokenizer, f"{name}_token_id") for name in ("unk", "mask", "pad", "eos")]
        self.unknown = next(i for i in ids if i is not None)

    def __call__(self, texts: Sequence[str], words: Sequence[Bounds]) -> Iterator[list[Window]]:
        """Yield the windows of each text, without those in which nothing is scored."""
        backend: Any = self.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "<s>" in a page of HTML is text
        encoded = backend.encode_batch(list(texts), add_special_tokens=False)
        for text, bounds, whole in zip(texts, words, encoded, strict=True):
            if not bounds:
                yield []
                continue
            found = _owners(np.array(whole.offsets, dtype=np.int64).reshape(-1, 2), bounds)
            if found is None:  # a token holds parts of two words, so they are tokenized one by one
                yield self._windows(*self._word_by_word(backend, text, bounds), len(bounds))
            else:
                yield self._windows(np.array(whole.ids, dtype=np.int64), found, len(bounds))

    def _word_by_word(self, backend: Any, text: str, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
        ids: list[int] = []
        owners: list[int] = []
        cuts = [0, *(stop for _, stop in bounds)]
        parts = [text[begin:end] for begin, end in itertools.pairwise(cuts)]
        for word, part in enumerate(backend.encode_batch(parts, add_special_tokens=False)):
            space = bounds[word][0] - cuts[word]
            ids += part.ids
            owners += [word if stop > max(start, space) else -1 for start, stop in part.offsets]
        return np.array(ids, dtype=np.int64), np.array(owners, dtype=np.int64)

    def _windows(self, ids_L: np.ndarray, owner_L: np.ndarray, words: int) -> list[Window]:
        """owner_L: the word of each token, -1 for none."""
        missing = np.setdiff1d(np.arange(words), owner_L)
        if len(missing):
            later = np.maximum.accumulate(owner_L) if len(owner_L) else owner_L
            at = np.searchsorted(later, missing)
            ids_L, owner_L = np.insert(ids_L, at, self.unknown), np.insert(owner_L, at, missing)
        word_W, first_W = np.unique(owner_L, return_index=True)
        word_W, first_W = word_W[word_W >= 0], first_W[word_W >= 0]
        bounds = window_bounds(len(ids_L), self.room, self.stride or 0)
        window_W = best_window(len(ids_L), bounds)[first_W]
        windows = []
        for number in np.unique(window_W):
            start, stop = bounds[number]
            here = window_W == number
            row = np.concatenate([self.before, ids_L[start:stop], self.after])
            windows.append(Window(row, first_W[here] - start + len(self.before), word_W[here]))
        return windows


def _owners(offsets_L2: np.ndarray, bounds: Bounds) -> np.ndarray | None:
    """Return the word that each token has characters of, (tokens,), -1 for none; None if a token has two words."""
    starts, stops = np.array(bounds, dtype=np.int64).T
    first, last = offsets_L2.T
    word = np.searchsorted(stops, first, side="right")  # the first word that ends behind the token's start
    upper = np.searchsorted(starts, last, side="left") - 1  # the last word that begins before the token's end
    has_text = (last > first) & (upper >= word)
    if (upper[has_text] > word[has_text]).any():
        return None
    return np.where(has_text, word, -1)


def tokenize_words(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], *, max_length: int,
    stride: int | None = None, num_proc: int | None = None, where: str = "data",
) -> Dataset:  # fmt: skip
    """Tokenize texts with tagged words to rows, one a window.

    dataset: columns `text`, `starts`, `stops`, `tags` (a list with an item a word) and `example`. names: of the tags.
    Returns the tokenizer's model inputs, `labels` (-100 where nothing is scored), `words` (the number in its text of
    each scored word) and `example`. Texts without words give no row.

    Raises UserError when no word is left, and as `WordWindows`.
    """
    cut = WordWindows(tokenizer, max_length, stride)
    ids_of = {name: number for number, name in enumerate(names)}
    kinds = segment_ids(tokenizer)

    def tokenize(batch):
        rows: dict[str, list] = {name: [] for name in features}
        bounds = [list(zip(*each, strict=True)) for each in zip(batch["starts"], batch["stops"], strict=True)]
        for windows, tags, example in zip(cut(batch["text"], bounds), batch["tags"], batch["example"], strict=True):
            for window in windows:
                labels = np.full(len(window.input_ids), IGNORED, dtype=np.int64)
                labels[window.places] = [ids_of[tags[word]] for word in window.words]
                rows["input_ids"].append(window.input_ids)
                if kinds is not None:
                    rows["token_type_ids"].append(kinds(len(window.input_ids)))
                rows["labels"].append(labels)
                rows["words"].append(window.words)
                rows["example"].append(example)
        return rows

    ids = List(Value("int32"))
    features = Features({"input_ids": ids} | ({} if kinds is None else {"token_type_ids": ids}))
    # int64: int32 labels are those of a decoder's text, which count as tokens
    features |= {"labels": List(Value("int64")), "words": ids, "example": Value("int32")}
    features = Features(features)
    key = ("words", max_length, cut.stride, *names)
    rows = map_rows(dataset, tokenize, features, tokenizer, key, num_proc, f"tokenize {where}")
    if not len(rows):
        raise UserError(f"{where}: no text has a word; check the columns of the data")
    return rows


def segment_ids(tokenizer: PreTrainedTokenizerBase):
    """Return a function that makes the `token_type_ids` of a row of a length; None for a tokenizer without them."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return None
    before, after = (len(ids) for ids in special_tokens_around(tokenizer))
    kinds = np.array(tokenizer("a", return_token_type_ids=True)["token_type_ids"], dtype=np.int64)
    one = len(kinds) - before - after  # tokens of the text "a"
    return lambda length: np.concatenate(
        [kinds[:before], np.repeat(kinds[before], length - before - after), kinds[before + one :]]
    )
