"""A streamed corpus: texts are read, shuffled, tokenized and cut into rows when a training step needs them.

A checkpoint stores the position in the stream as a few numbers. All orders (of the files, of the texts in a window, of
the rows of a batch of texts) are functions of (seed, epoch, position). So a resumed run reads its window again from the
beginning and makes the same rows: no row is lost or read twice.
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

# Errors of an unreadable file. `datasets` raises StopIteration for a JSON file without a line.
READING = (DatasetGenerationError, ValueError, OSError, RuntimeError, StopIteration)
SIDE_BY_SIDE = 8  # files read in turn, so that a window mixes the subjects of several files
TOGETHER = 256  # texts tokenized in one call
Count = Callable[[np.ndarray], np.ndarray]
START: dict[str, Any] = {
    "epoch": 0, "open": [], "next": 0, "window": 0, "text": 0, "row": 0, "rows": 0, "step": 0, "size": 0
}  # fmt: skip


class _Open:
    """An open shard, and the state to continue from. A data set's own state is valid only after the first read."""

    def __init__(self, number: int, shard: IterableDataset, state: dict | None, batch_size: int):
        self.number, self.shard, self.state = number, shard, state
        if state is not None:
            shard.load_state_dict(state)
        self.batches = shard.iter(batch_size=batch_size)

    def read(self) -> dict | None:
        """Return the next texts, None at the end."""
        batch = next(self.batches, None)
        self.state = self.shard.state_dict()
        return batch


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of a split, shuffled within a window of `buffer_size` texts; no more are in memory.

    dataset: has the column `column`. Its shards are files, read in an order that depends on (seed, epoch), a few side
        by side; a Parquet file is read by row groups, in their order.
    where: the name of the data in error messages. names: of the shards.
    """

    dataset: IterableDataset
    column: str
    buffer_size: int
    where: str = "data"
    names: tuple[str, ...] = ()

    def first(self, rows: int) -> Dataset:
        """Return the first texts in file order."""
        return Dataset.from_list(list(islice(self.dataset, rows)))

    def windows(self, seed: int, epoch: int, place: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Yield the unshuffled windows of an epoch from `place` on, each with the place where it begins.

        Raises UserError when a shard cannot be read.
        """
        count = self.dataset.num_shards
        order, each = epoch_order(seed, epoch, count), max(1, self.buffer_size // SIDE_BY_SIDE)

        def begin(number: int, state: dict | None = None) -> _Open:
            shard = self.dataset.shard(count, int(order[number]))
            if hasattr(shard, "reshard"):  # to find a row group without reading the earlier ones
                shard = shard.reshard()
            return _Open(number, shard, state, each)

        def read(shard: _Open) -> dict | None:
            try:
                return shard.read()
            except UserError as error:  # of a local file; it names the file
                raise UserError(f"{error}; fix the file, then --resume") from error
            except READING as error:
                number = int(order[shard.number])
                name = self.names[number] if self.names else f"{self.where}, shard {number + 1} of {count}"
                raise UserError(f"{name}: cannot read on: {root_line(error)}; fix the file, then --resume") from error

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
    """The rows of an optimizer step.

    first: the number in its epoch of the first row. after: the state after this step.
    """

    epoch: int
    first: int
    rows: list[dict[str, Any]]
    after: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Stream:
    """The token rows of `texts`, cut by `cut`: texts -> columns of rows with at most `max_length` tokens.

    A state is a mapping that can be saved as JSON. It holds the epoch; the open files, and where in each the window
    begins; how many windows, texts of this window, and rows of this batch of texts are done; and the rows, the steps
    and the total size read in this epoch.
    """

    texts: Texts
    cut: Callable[[list[str]], dict[str, list]]
    max_length: int

    def lengths(self, rows: Sequence[dict]) -> np.ndarray:
        """Return the number of tokens of each row, (rows,)."""
        return np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)

    @cached_property
    def first_rows(self) -> Dataset:
        """Return the rows of the first texts, unshuffled, as a sample. Raises UserError when there are none."""
        for batch in self.texts.dataset.iter(batch_size=TOGETHER):
            columns = self.cut(batch[self.texts.column])
            if columns["input_ids"]:
                return Dataset.from_dict(columns)
        raise UserError(self._no_text())

    def steps(
        self, seed: int, batch: int, tokens_of: Count | None, state: dict[str, Any] | None = None, apply: Callable = map
    ) -> Iterator[Step]:
        """Yield the steps after a state, without end. The last step of an epoch takes the rest, as in `Schedule`.

        batch: the mean size of a step in rows; in tokens if `tokens_of` is given.
        tokens_of: row lengths -> the size of each row.
        apply: a `map`, which may run its function in other processes. The steps do not depend on their number.

        Raises UserError for a stream without text, a stream that ends before the first step is full, and a stream with
        another number of shards than the state has.
        """
        state = START | {"shards": self.texts.dataset.num_shards} | (state or {})
        if state["shards"] != self.texts.dataset.num_shards:
            raise UserError(
                f"{self.texts.where}: has {self.texts.dataset.num_shards} files, but had {state['shards']} when the "
                "run began; restore these files, or start another run"
            )
        epoch, done, rows, step, size = (state[n] for n in ("epoch", "row", "rows", "step", "size"))
        taken: list[dict[str, Any]] = []
        for place, read in apply(self.tokenize, self._batches(seed, state)):
            if place["epoch"] != epoch:
                if not taken and not rows:
                    raise UserError(self._no_text())
                if step == 0 and size < batch:
                    unit = "tokens" if tokens_of else "rows"
                    raise UserError(
                        f"{self.texts.where}: the stream ends after {size} {unit}, before the first step is full; "
                        f"lower training.global_batch_{'tokens' if tokens_of else 'size'} (now {batch})"
                    )
                if taken:
                    yield Step(epoch, rows, taken, place)
                epoch, rows, step, size, taken = place["epoch"], 0, 0, 0, []
            lengths = np.array([len(row["input_ids"]) for row in read], dtype=np.int64)
            counts = (tokens_of(lengths) if tokens_of and read else np.ones_like(lengths)).tolist()
            for number in range(done, len(read)):
                if size + counts[number] > (step + 1) * batch:
                    after = {"row": number, "rows": rows + len(taken), "step": step + 1, "size": size}
                    yield Step(epoch, rows, taken, place | after)
                    rows, step, taken = rows + len(taken), step + 1, []
                taken.append(read[number])
                size += counts[number]
            done = 0

    def tokenize(self, batch: tuple[dict[str, Any], list[str], list[int]]) -> tuple[dict[str, Any], list[dict]]:
        """Return the rows of a batch of texts, shuffled, so that the rows of a long text are not all together."""
        place, texts, seeds = batch
        columns = self.cut(texts)
        dtypes = {"input_ids": np.int32, "starts_word": np.bool_}  # per-token values; small, to send between processes
        values = [
            [np.asarray(value, dtype=dtypes[name]) for value in column] if name in dtypes else column
            for name, column in columns.items()
        ]
        rows = [dict(zip(columns, each, strict=True)) for each in zip(*values, strict=True)]
        return place, [rows[i] for i in np.random.default_rng(seeds).permutation(len(rows))]

    def _batches(self, seed: int, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str], list[int]]]:
        """Yield batches of texts after a state, without end: their place, the texts, the seed of the row order."""
        place, first = START | {"shards": state["shards"]}, state["text"]
        place |= {name: state[name] for name in ("epoch", "open", "next", "window")}
        while True:
            epoch, window = place["epoch"], place["window"]
            first_window = window
            for start, texts in self.texts.windows(seed, epoch, place):
                order = np.random.default_rng([seed, epoch, window, 1]).permutation(len(texts))
                for text in range(first, len(texts), TOGETHER):
                    current = place | start | {"window": window, "text": text}
                    yield current, [texts[i] for i in order[text : text + TOGETHER]], [seed, epoch, window, 2, text]
                window, first = window + 1, 0
            if window == first_window:
                if place["open"]:
                    raise UserError(
                        f"{self.texts.where}: ends before the place where the run stopped; restore its files, or start "
                        "another run"
                    )
                raise UserError(self._no_text())
            place = START | {"shards": state["shards"], "epoch": epoch + 1}

    def _no_text(self) -> str:
        return f"{self.texts.where}: no text is left after tokenization; is column {self.texts.column!r} the text?"
