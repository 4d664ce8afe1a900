"""Group texts into windows and split long ones, so that answers come in order."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any, Literal, TypeVar

from decero.data.special_tokens import encode_framed
from decero.errors import UserError
from decero.inference.loading import Loaded

TooLong = Literal["split", "cut"]
Warn = Callable[[str], Any]
T = TypeVar("T")
FIRST_WINDOW, LARGEST_WINDOW = 32, 4096  # texts: a small first window answers soon, larger ones sort better
SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")


def windows(texts: Iterable[T], first: int = FIRST_WINDOW) -> Iterator[list[T]]:
    """Yield `first` texts, then lists that double in size.

    With `first` 1, every list has one text.

    Raises UserError for a `first` below 1.
    """
    if first < 1:
        raise UserError(f"first_window: {first} is too small; give 1 or more")
    texts, size = iter(texts), first
    while window := list(islice(texts, size)):
        yield window
        size = 1 if first == 1 else min(2 * size, max(first, LARGEST_WINDOW))


def checked_texts(texts: Iterable[Any], pairs: bool | None = False) -> Iterator[Any]:
    """Yield texts, and pairs of texts as tuples. pairs: whether all are pairs; None: either is allowed.

    Raises UserError for one text in place of several, and for what is no text or no pair.
    """
    if isinstance(texts, str | bytes | Mapping | Set) or not isinstance(texts, Iterable):
        raise UserError(f"texts: give a list of texts, not a {type(texts).__name__}")
    for line, text in enumerate(texts, start=1):
        is_pair = isinstance(text, tuple | list)
        wanted = "text" if not pairs else "pair of texts"
        if pairs is not None and is_pair != pairs:
            raise UserError(f"line {line}: {str(text)[:40]} is no {wanted}; give a {wanted}, or leave it out")
        parts = text if is_pair else (text,)
        if is_pair and len(parts) != 2:
            raise UserError(f"line {line}: a pair has 2 texts, not {len(parts)}")
        for part in parts:
            if not isinstance(part, str):
                raise UserError(f"line {line}: {str(part)[:40]} is no text; give a {wanted}, or leave it out")
            try:
                part.encode()
            except UnicodeEncodeError as error:
                problem = "half a character (a lone surrogate, \\ud800 to \\udfff)"
                raise UserError(f"line {line}: {problem}; correct it") from error
        yield tuple(text) if is_pair else text


def in_order(pieces_of: list[list[int]], done: Iterable[tuple[list[int], list[T]]]) -> Iterator[list[T]]:
    """Yield the results of each text in order, as soon as all earlier texts are complete.

    pieces_of: for each text the numbers of its pieces, an empty list for an empty text.
    done: batches as (piece numbers, results), in any order.
    """
    results: dict[int, T] = {}
    following = 0
    batches = iter(done)
    while following < len(pieces_of):
        if all(piece in results for piece in pieces_of[following]):
            yield [results.pop(piece) for piece in pieces_of[following]]
            following += 1
        else:
            results.update(zip(*next(batches), strict=True))


def pieces(loaded: Loaded, text: str, number: int, too_long: TooLong, warn: Warn, prefix: str = "") -> list[str]:
    """Split a text into parts that fit the model with prefix and special tokens.

    number: line number, for the warning.
    `split` splits between sentences; if a sentence is too long, between words; if a word is too long, inside it.
    `cut` returns the whole text, and the caller truncates it. An empty text has no parts.

    Raises UserError if prefix and special tokens leave no room for text.
    """
    if not text.strip():
        return []
    room = loaded.positions()
    if room is None:
        return [text]

    def length(part: str) -> int:
        return len(encode_framed(loaded.tokenizer, lambda part: prefix + part, part, special_tokens=True))

    if room - length("") < 1:
        raise UserError(f"{loaded.name}: the prefix fills all {room} positions; shorten it")
    if (tokens := length(text)) <= room:
        return [text]
    parts = [text] if too_long == "cut" else _split(text, room, length)
    action = "cut" if too_long == "cut" else f"split into {len(parts)} parts"
    warn(f"line {number}: {action}; its {tokens} tokens exceed the limit of {room} of {loaded.name}")
    return parts


def _split(text: str, room: int, length: Callable[[str], int]) -> list[str]:
    """Split the text into parts of at most `room` tokens. Joined, the parts are the text."""
    if len(text) < 2 or (tokens := length(text)) <= room:
        return [text]
    special = length("")
    ends = [match.end() for match in SENTENCE_END.finditer(text) if match.end() < len(text)]
    ends = ends or [match.end() for match in re.finditer(r"\s+", text) if 0 < match.end() < len(text)]
    if not ends:  # one long word: cut it evenly, because halving it again and again takes long
        count = min(len(text), max(2, -(-tokens // max(1, room - special))))
        ends = [len(text) * place // count for place in range(1, count)]
    units = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    parts, filled = [units[0]], length(units[0]) - special
    for unit in units[1:]:
        added = length(unit) - special
        if filled + added + special <= room:
            parts[-1], filled = parts[-1] + unit, filled + added
        else:
            parts.append(unit)
            filled = added
    if len(parts) == 1:  # the units fit in sum but not as one text, since tokens merge differently: take halves
        parts = ["".join(units[: len(units) // 2]), "".join(units[len(units) // 2 :])]
    return [smaller for part in parts for smaller in _split(part, room, length)]
