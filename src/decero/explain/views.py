"""What a part of explain gives to a page or a picture: heat maps, bars, curves, tables and coloured passages."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from decero.explain.recording import Piece

Scale = Literal["weights", "values", "signed", "logs"]
SIGNS = {"\n": "↵", "\r": "↵", "\t": "⇥"}


@dataclass(frozen=True)
class Heatmap:
    """A matrix as colours.

    values: (rows, columns), NaN for nothing.
    scale: `weights` lie in [0, 1] and are stored as 8-bit tiles; `values` run from the smallest to the largest;
        `signed` has white at 0; `logs` are above 0 and their logarithm is coloured.
    texts: what stands in each cell instead of its number, for example the token that a layer would answer.
    notes: sentences below the picture.
    row_title, column_title: what the rows and the columns are.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    scale: Scale = "values"
    texts: Sequence[Sequence[str]] | None = None
    notes: Sequence[str] = ()
    row_title: str = ""
    column_title: str = ""


@dataclass(frozen=True)
class Bars:
    """A bar for each name, in the order given. low, high: the ends of an interval."""

    title: str
    names: Sequence[str]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Curves:
    """A line for each name over the same points. values: (names, points)."""

    title: str
    names: Sequence[str]
    points: Sequence[float]
    values: np.ndarray
    x_title: str = ""
    y_title: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under column names."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Passage:
    """A text whose tokens have a score: blue is below 0, red above."""

    title: str
    tokens: Sequence[str]
    scores: Sequence[float]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """A finished figure, such as a picture under its attention."""

    title: str
    figure: Figure
    notes: Sequence[str] = ()


Panel = Heatmap | Bars | Curves | Table | Passage | Drawing


@dataclass(frozen=True)
class View:
    """A chapter of a page.

    name: the word of `--view`. about: what the pictures mean. caution: what they do not mean.
    """

    name: str
    title: str
    about: str
    caution: str
    panels: Sequence[Panel] = field(default=())


JOINS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}  # joiners, and the tags of flags


def printable(text: str) -> str:
    """Show white space as signs, and remove control characters and marks that turn the direction of writing.

    Any other space becomes a plain one. Joiners of letters and the tags of flags stay.
    """
    text = "".join(SIGNS.get(sign, " " if sign.isspace() else sign) for sign in text)
    return "".join(sign for sign in text if sign.isprintable() or sign in JOINS)


def label(piece: Piece) -> str:
    """Return what stands on an axis for a token: its text without outer spaces, `␣` for a space, `∅` for nothing."""
    return printable(piece.text.strip(" ")) or ("∅" if piece.text.strip(" ") or not piece.text else "␣")


def labels(pieces: Sequence[Piece]) -> list[str]:
    """Return the labels of all pieces."""
    return [label(piece) for piece in pieces]
