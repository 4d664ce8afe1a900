"""ListOps: the value of a nested expression of minimum, maximum, median and sum."""

import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from decero.data.collators import IGNORED
from decero.data.synthetic import generator

DIGITS = 1  # the id of 0; that of 9 is 10
MIN, MAX, MED, SM, END = range(11, 16)
OPERATIONS = (MIN, MAX, MED, SM)
NESTED = 0.25  # share of the arguments that are expressions themselves
OF_TEN = {"test": (0,), "validation": (1,), "train": tuple(range(2, 10))}  # checksums of a split, modulo 10


@dataclass(frozen=True)
class ListOps:
    """Rows such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, with the value at the last bracket (Nangia & Bowman 2018).

    A row has at least half of `length` tokens. No expression occurs in two splits.
    """

    length: int
    max_depth: int
    max_arguments: int
    vocab_size: int = END + 1

    def row(self, split: str, seed: int, index: int) -> dict[str, list[int]]:
        """Return input_ids and labels, both (tokens of the expression,)."""
        draw = generator(split, seed, index)
        while True:
            tokens = self._expression(draw, 1)
            fits = self.length // 2 <= len(tokens) <= self.length
            if fits and zlib.crc32(bytes(tokens)) % 10 in OF_TEN[split]:
                return {"input_ids": tokens, "labels": [IGNORED] * (len(tokens) - 1) + [DIGITS + value_of(tokens)]}

    def _expression(self, draw: np.random.Generator, depth: int) -> list[int]:
        tokens = [int(draw.choice(OPERATIONS))]
        for _ in range(draw.integers(2, self.max_arguments + 1)):
            if depth < self.max_depth and draw.random() < NESTED:
                tokens += self._expression(draw, depth + 1)
            else:
                tokens.append(DIGITS + int(draw.integers(10)))
        return [*tokens, END]

    def chance(self, rows: Dataset) -> tuple[float, str]:
        answers = Counter(labels[-1] for labels in rows["labels"])
        return answers.most_common(1)[0][1] / len(rows), "the most common value"


def value_of(tokens: list[int]) -> int:
    """Return the value of an expression, 0 to 9. Raises ValueError for a broken one."""
    waiting: list[tuple[int, list[int]]] = []
    for place, token in enumerate(tokens):
        if token in OPERATIONS:
            waiting.append((token, []))
            continue
        if not waiting:
            raise ValueError(f"token {place} stands outside of an expression")
        value = token - DIGITS if token != END else _apply(*waiting.pop())
        if not waiting:
            if place + 1 < len(tokens):
                raise ValueError(f"token {place + 1} stands after the end of the expression")
            return value
        waiting[-1][1].append(value)
    raise ValueError(f"{len(waiting)} brackets are open")


def _apply(operation: int, values: list[int]) -> int:
    if operation == SM:
        return sum(values) % 10
    return int({MIN: min, MAX: max, MED: np.median}[operation](values))  # type: ignore[operator]
