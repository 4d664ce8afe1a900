"""Texts on their way to a model and back: in windows, so that batches can be sorted and answers still come in order."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Literal, TypeVar

from decero.errors import UserError
from decero.inference.loading import Loaded

TooLong = Literal["split", "cut"]
Warn = Callable[[str], Any]
T = TypeVar("T")
FIRST_WINDOW, LARGEST_WINDOW = 32, 4096  # texts: the first answers come soon, later batches are well sorted
SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")


def windows(texts: Iterable[T], first: int = FIRST_WINDOW) -> Iterator[list[T]]:
    """Lists of `first` texts, then twice as many each time; of one text, always, where `first` is 1."""
    texts, size = iter(texts), first
    while window := list(islice(texts, size)):
        yield window
        size = 1 if first == 1 else min(2 * size, max(first, LARGEST_WINDOW))


def in_order(pieces_of: list[list[int]], done: Iterable[tuple[list[int], list[T]]]) -> Iterator[list[T]]:
    """What was made of the pieces of each text, a text after the other, as soon as all before it are there.

    pieces_of: numbers of the pieces of each text, none for an empty one. done: batches of numbers, and what was made.
    """
    made: dict[int, T] = {}
    following = 0
    batches = iter(done)
    while following < len(pieces_of):
        if all(piece in made for piece in pieces_of[following]):
            yield [made.pop(piece) for piece in pieces_of[following]]
            following += 1
        else:
            made.update(zip(*next(batches), strict=True))


def pieces(
    loaded: Loaded, text: str, number: int, too_long: TooLong, warn: Warn, prefix: str = "", suffix: str = "",
    reserve: int = 0,
) -> list[str]:  # fmt: skip
    """The text in parts that the model can read, each with prefix, suffix and special tokens; none of an empty text.

    number: of its line, for the warning. reserve: positions that are wanted for something else.
    Split at ends of sentences, where one is too long between words, else within one; or the whole, to be cut.

    Raises UserError when prefix and special tokens leave no room.
    """
    if not text.strip():
        return []
    limit = loaded.positions()
    if limit is None:
        return [text]
    room = limit - reserve

    def length(part: str) -> int:
        return len(loaded.tokenizer(prefix + part + suffix, verbose=False)["input_ids"])

    if room - length("") < 1:
        raise UserError(
            f"{loaded.name}: its {limit} positions leave no room beside the prefix and {reserve} new tokens"
        )
    if (tokens := length(text)) <= room:
        return [text]
    parts = [text] if too_long == "cut" else _split(text, room, length)
    how = "is cut" if too_long == "cut" else f"is split in {len(parts)}"
    warn(f"line {number}: {tokens} tokens, more than the {room} that {loaded.name} reads at once; it {how}")
    return parts


def _split(text: str, room: int, length: Callable[[str], int]) -> list[str]:
    """Parts of at most `room` tokens that make up the text."""
    if len(text) < 2 or length(text) <= room:
        return [text]
    ends = [match.end() for match in SENTENCE_END.finditer(text) if match.end() < len(text)]
    ends = ends or [match.end() for match in re.finditer(r"\s+", text) if 0 < match.end() < len(text)]
    ends = ends or [len(text) // 2]
    units = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    special = length("")
    parts, filled = [units[0]], length(units[0]) - special
    for unit in units[1:]:
        more = length(unit) - special
        if filled + more + special <= room:
            parts[-1], filled = parts[-1] + unit, filled + more
        else:
            parts.append(unit)
            filled = more
    if len(parts) == 1:  # the sum of the units fits and the whole does not: halves do
        parts = ["".join(units[: len(units) // 2]), "".join(units[len(units) // 2 :])]
    return [each for part in parts for each in _split(part, room, length)]
