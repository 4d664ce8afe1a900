"""A corpus that is never held: texts are read, shuffled, tokenised and cut as steps ask for them.

Where a run stands in it is a handful of numbers in its checkpoint. Nothing is drawn: the order of the files, of the
texts of a window and of the rows of a batch of texts are functions of (seed, epoch, where), so what was on its way when
a run was killed is made again from the place where its window begins, and no row is lost or read twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetGenerationError

from decero.data.order import epoch_order
from decero.errors import UserError, root_line

# What a file that cannot be read raises; a JSON file without a line ends an iteration of `datasets`' own.
READING = (DatasetGenerationError, ValueError, OSError, RuntimeError, StopIteration)
SIDE_BY_SIDE = 8  # files that are read in turn, so that a window does not hold one file's subject alone
TOGETHER = 256  # texts that are tokenised at once
Count = Callable[[np.ndarray], np.ndarray]
START: dict[str, Any] = {
    "epoch": 0, "open": [], "next": 0, "window": 0, "text": 0, "row": 0, "rows": 0, "step": 0, "size": 0
}  # fmt: skip


class _Open:
    """A shard that is being read, and the state to read on from: a data set's own is right once it was read from."""

    def __init__(self, number: int, shard: IterableDataset, state: dict | None, batch_size: int):
        self.number, self.shard, self.state = number, shard, state
        if state is not None:
            shard.load_state_dict(state)
        self.batches = shard.iter(batch_size=batch_size)

    def read(self) -> dict | None:
        """The next texts, or None at the end."""
        batch = next(self.batches, None)
        self.state = self.shard.state_dict()
        return batch


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of a split, of which no more than `buffer_size` are held: they are shuffled within that window.

    dataset: of the column `column`; its shards (files; of Parquet the row groups of a file, one after the other) are
    read in the order of (seed, epoch), a few side by side. where: what errors say it is. names: of the shards.
    """

    dataset: IterableDataset
    column: str
    buffer_size: int
    where: str = "data"
    names: tuple[str, ...] = ()

    def first(self, rows: int) -> Dataset:
        """The first texts as they stand in the files."""
        return Dataset.from_list(list(islice(self.dataset, rows)))

    def windows(self, seed: int, epoch: int, place: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """The windows of an epoch from `place` on, each with the place where it begins, unshuffled.

        Raises UserError for a shard that cannot be read on.
        """
        count = self.dataset.num_shards
        order, each = epoch_order(seed, epoch, count), max(1, self.buffer_size // SIDE_BY_SIDE)

        def begin(number: int, state: dict | None = None) -> _Open:
            shard = self.dataset.shard(count, int(order[number]))
            if hasattr(shard, "reshard"):  # a row group is then found without reading those before it
                shard = shard.reshard()
            return _Open(number, shard, state, each)

        def read(shard: _Open) -> dict | None:
            try:
                return shard.read()
            except READING as error:
                number = int(order[shard.number])
                name = self.names[number] if self.names else f"{self.where}, shard {number + 1} of {count}"
                raise UserError(f"{name}: cannot be read on: {root_line(error)}; mend it, then --resume") from error

        following = place["next"]
        shards = [begin(number, state) for number, state in place["open"]]
        while shards or following < count:
            start = {"open": [[shard.number, shard.state] for shard in shards], "next": following}
            texts: list[str] = []
            while len(texts) < self.buffer_size and (shards or following < count):
                while len(shards) < SIDE_BY_SIDE and following < count:
                    shards.append(begin(following))
                    following += 1
                first = shards.pop(0)
                if (batch := read(first)) is not None:
                    texts += batch[self.column]
                    shards.append(first)
            if texts:
                yield start, texts


class Step(NamedTuple):
    """The rows of an optimizer step: `first` is the number of the first of them in its epoch. after: the state then."""

    epoch: int
    first: int
    rows: list[dict[str, Any]]
    after: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Stream:
    """The token rows of `texts`, which are cut by `cut`: texts -> columns, a row at most `max_length` tokens.

    A state is a mapping that JSON holds: epoch; the files that are open and where in each its window begins; how many
    windows, texts of this window and rows of this batch of texts are behind; rows, steps and their sizes of the epoch.
    """

    texts: Texts
    cut: Callable[[list[str]], dict[str, list]]
    max_length: int

    def lengths(self, rows: Sequence[dict]) -> np.ndarray:
        """Tokens of each of its rows."""
        return np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)

    @cached_property
    def first_rows(self) -> Dataset:
        """The rows of the first texts, unshuffled, for whoever wants to look at some. Raises UserError for none."""
        for batch in self.texts.dataset.iter(batch_size=TOGETHER):
            columns = self.cut(batch[self.texts.column])
            if columns["input_ids"]:
                return Dataset.from_dict(columns)
        raise UserError(self._no_text())

    def steps(
        self, seed: int, batch: int, tokens_of: Count | None, state: dict[str, Any] | None = None, apply: Callable = map
    ) -> Iterator[Step]:
        """The steps that follow a state, for ever: at the end of an epoch the last takes what is left, as `Schedule`'s.

        batch: rows a step, on average; with `tokens_of`, lengths of rows -> what each counts, tokens. apply: a `map`,
        whose function other processes may run. All of it is the same whatever the number of processes.

        Raises UserError for a stream without text, one that ends before the first step is full, and one that was cut
        into other shards since.
        """
        state = START | {"shards": self.texts.dataset.num_shards} | (state or {})
        if state["shards"] != self.texts.dataset.num_shards:
            raise UserError(
                f"{self.texts.where}: has {self.texts.dataset.num_shards} files and had {state['shards']} when the run "
                "began; bring back what it had, or begin another run"
            )
        epoch, behind, rows, step, size = (state[n] for n in ("epoch", "row", "rows", "step", "size"))
        taken: list[dict[str, Any]] = []
        for place, read in apply(self.tokenise, self._batches(seed, state)):
            if place["epoch"] != epoch:
                if not taken and not rows:
                    raise UserError(self._no_text())
                if step == 0 and size < batch:
                    unit = "tokens" if tokens_of else "rows"
                    raise UserError(
                        f"{self.texts.where}: the stream ends after {size} {unit}, before one step is full; "
                        f"lower training.global_batch_{'tokens' if tokens_of else 'size'} (now {batch})"
                    )
                if taken:
                    yield Step(epoch, rows, taken, place)
                epoch, rows, step, size, taken = place["epoch"], 0, 0, 0, []
            lengths = np.array([len(row["input_ids"]) for row in read], dtype=np.int64)
            counts = (tokens_of(lengths) if tokens_of and read else np.ones_like(lengths)).tolist()
            for number in range(behind, len(read)):
                one = counts[number]
                if size + one > (step + 1) * batch:
                    after = {"row": number, "rows": rows + len(taken), "step": step + 1, "size": size}
                    yield Step(epoch, rows, taken, place | after)
                    rows, step, taken = rows + len(taken), step + 1, []
                taken.append(read[number])
                size += one
            behind = 0

    def tokenise(self, batch: tuple[dict[str, Any], list[str], list[int]]) -> tuple[dict[str, Any], list[dict]]:
        """The rows of a batch of texts in an order of their own, so that a long text is not read in one go."""
        place, texts, seeds = batch
        columns = self.cut(texts)
        kinds = {"input_ids": np.int32, "starts_word": np.bool_}  # what a row has for each token, small to hand over
        values = [
            [np.asarray(value, dtype=kinds[name]) for value in column] if name in kinds else column
            for name, column in columns.items()
        ]
        rows = [dict(zip(columns, each, strict=True)) for each in zip(*values, strict=True)]
        return place, [rows[i] for i in np.random.default_rng(seeds).permutation(len(rows))]

    def _batches(self, seed: int, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str], list[int]]]:
        """Batches of texts from a state on, for ever, each with its place and what the order of its rows is made of."""
        place, first = START | {"shards": state["shards"]}, state["text"]
        place |= {name: state[name] for name in ("epoch", "open", "next", "window")}
        while True:
            epoch, window = place["epoch"], place["window"]
            begun = window
            for start, texts in self.texts.windows(seed, epoch, place):
                order = np.random.default_rng([seed, epoch, window, 1]).permutation(len(texts))
                for text in range(first, len(texts), TOGETHER):
                    now = place | start | {"window": window, "text": text}
                    yield now, [texts[i] for i in order[text : text + TOGETHER]], [seed, epoch, window, 2, text]
                window, first = window + 1, 0
            if window == begun:
                raise UserError(self._no_text())
            place = START | {"shards": state["shards"], "epoch": epoch + 1}

    def _no_text(self) -> str:
        return f"{self.texts.where}: no text is left after tokenization; is column {self.texts.column!r} the text?"
