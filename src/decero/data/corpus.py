"""Load text from a hub data set, local files, a stream, or an installed package.

Data set scripts are not supported: `datasets` no longer runs them.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from decero.data.column_names import Wanted, missing_column
from decero.data.columns import missing_rows, text_hashes
from decero.data.embedded import EMBEDDED
from decero.data.hub_rows import keep_rows, open_hub, read_hub
from decero.data.row_filter import Where, rows_where
from decero.data.stream import READING, Texts
from decero.data.text_files import SPLITS, find_files, open_files, read_files
from decero.errors import UserError, root_line

T = TypeVar("T")
ROW = "row of the source"  # column with the number that a row had before rows were held out


def load_corpus(
    *,
    name: str | None = None,
    files: dict[str, str | list[str]] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    sample_by: str = "paragraph",
    max_rows: int | None = None,
    where: Where | None = None,
    text_column: str = "text",
    columns: Wanted | None = None,
    validation_fraction: float = 0.0,
    test_fraction: float = 0.0,
    number_rows: bool = False,
    say: Callable[[str], object] = lambda line: None,
    needs_train: bool = True,
    setting: str = "data.files",
    words: bool = False,
    to_pairs: Callable[[DatasetDict], DatasetDict] | None = None,
    check: Callable[..., None] | None = None,
    hashes: Callable[[Dataset, str], np.ndarray] = text_hashes,
    read: Callable[..., Dataset] = read_files,
) -> DatasetDict:
    """Load a memory-mapped `DatasetDict` with `train` and, if given or split off, `validation` and `test`.

    name: an embedded corpus (`bbc_news`), a hub data set or a local folder in the hub's layout.
    files: instead of a name; split -> paths, globs or folders of txt, jsonl, csv, tsv or parquet (compressed or not).
    streaming: read the hub data set row by row as it arrives, and keep `max_rows` of each split.
    sample_by: what one row of a txt file is: `line`, `paragraph` or `document`.
    where: keep only rows with these values, column -> value or values; before `max_rows` counts.
    columns: of files, the columns to read besides `text_column`, each with the setting that names it; all columns when
        not given. `a.b` is field b of the nested column a. Columns of csv and tsv files are text, as it is written.
    validation_fraction, test_fraction: split off from train if the corpus has no such split. The split of a row depends
        only on its text: equal texts are always in the same split, and new rows move no old row.
    number_rows: keep the numbers of rows that have others before them left out, see `source_rows`.
    say: called with a line for each split that `max_rows` cuts, where its size is known.
    needs_train: False leaves train out where there is another split, after rows were split off from it.
    setting: the one that names the files, for messages.
    words: whether `text_column` may also hold lists of words.
    to_pairs: turns rows that hold no text, such as dialogues, into rows whose text is the column `source`.
    check, hashes, read: `check_text`, `text_hashes` and `read_files`, or what takes their place, as for pictures.

    Raises UserError: an unknown name, file or column; text that is not UTF-8 (with file and line); an empty split; a
    split without a row that `where` keeps.
    """
    if (name is None) == (files is None):
        raise UserError("data: give exactly one of data.name (a data set) and data.files (split -> paths)")
    wanted = {text_column: "data.text_column"} | (columns or {}) | dict.fromkeys(where or {}, "data.where")
    if files is not None:
        corpus = DatasetDict(
            {split: read(split, each, sample_by, wanted, columns is None) for split, each in files.items()}
        )
    elif name in EMBEDDED:
        corpus = EMBEDDED[name](None)
    else:
        arriving = max_rows if streaming and not where else None  # all of them, where only some are kept
        corpus = read_hub(str(name), config_name, revision, streaming, arriving, wanted, columns is None)
    if where:
        if not needs_train and "test" in corpus:
            corpus = DatasetDict(without_train(corpus))  # train may lack the values that are scored
        counted = {split: numbered(rows) for split, rows in corpus.items()} if number_rows else corpus
        corpus = rows_where(DatasetDict(counted), where)
    if not streaming or where:
        corpus = DatasetDict({split: _first_rows(rows, split, max_rows, say) for split, rows in corpus.items()})
    text_setting = wanted[text_column]
    if to_pairs is not None:
        corpus, text_column = to_pairs(corpus), "source"
    return _complete(
        corpus, text_column, validation_fraction, test_fraction, name or setting, number_rows, needs_train,
        setting=text_setting, words=words, check=check, hashes=hashes, files=setting,
    )  # fmt: skip


def _first_rows(dataset: Dataset, split: str, max_rows: int | None, say: Callable[[str], object]) -> Dataset:
    if max_rows is None or max_rows >= len(dataset):
        return dataset
    say(f"{split}: the first {max_rows:,} of {len(dataset):,} rows (max_rows)")
    return dataset.select(range(max_rows))


def source_rows(dataset: Dataset) -> Any:
    """Return the number of each row in its files, or in its published split, from 0."""
    return dataset[ROW][:] if ROW in dataset.column_names else range(len(dataset))


def open_corpus(
    *, streaming: bool = False, buffer_size: int = 10_000, text_column: str = "text", **source: Any
) -> dict[str, Any]:
    """Load a corpus as `load_corpus`; if `streaming`, return train as `Texts`, and validation if there is one.

    Nothing of a stream is stored on disk.
    buffer_size: texts held in memory and shuffled at a time.
    source: the other arguments of `load_corpus`; when streaming, `max_rows` limits validation only.

    When streaming, files are not checked in advance: an unreadable file raises when it is read.

    Raises UserError: as `load_corpus`; also for a fraction to split off from a stream.
    """
    if not streaming:
        return load_corpus(text_column=text_column, **source)
    name, files, rows = (source.get(key) for key in ("name", "files", "max_rows"))
    if (name is None) == (files is None):
        raise UserError("data: give exactly one of data.name (a data set) and data.files (split -> paths)")
    if name in EMBEDDED:
        raise UserError(f"data.streaming: {name} is a small corpus in an installed package; remove data.streaming")
    for split in ("validation", "test"):
        if source.get(f"{split}_fraction"):
            raise UserError(
                f"data.{split}_fraction: cannot split off rows from a stream; give data.files.{split}, or remove the "
                "fraction"
            )
    if rows is not None and (say := source.get("say")):
        say("train: all rows of the stream; data.max_rows limits validation only")
    where, held_out = name or "data.files.train", {}
    names: tuple[str, ...] = ()
    if files is not None:
        found = {split: find_files(split, patterns) for split, patterns in files.items()}
        sample_by, wanted = source.get("sample_by", "paragraph"), {text_column: "data.text_column"}
        splits = {split: open_files(*each, sample_by, wanted, split != "train") for split, each in found.items()}
        names = tuple(map(str, found["train"][1])) if "train" in found else ()
    else:
        splits = open_hub(str(name), source.get("config_name"), source.get("revision"), [text_column])
    if "train" not in splits:
        raise UserError(f"{where}: no train split; found {', '.join(splits) or 'none'}; give data.files.train")
    train = splits["train"]
    try:
        first = list(itertools.islice(train, 1))
        sample = Dataset.from_list(first, features=train.features) if first else Dataset.from_dict({text_column: []})
        if "validation" in splits:
            held_out = {"validation": keep_rows(splits["validation"], rows)}
    except READING as error:
        raise UserError(f"{where}: cannot read it: {root_line(error)}") from error
    if not first:
        raise UserError(f"{where}: the train split is empty; give it text")
    _complete(DatasetDict(train=sample, **held_out), text_column, 0.0, 0.0, where)
    names = names if train.num_shards == len(names) else ()
    return {"train": Texts(train.select_columns([text_column]), text_column, buffer_size, where, names), **held_out}


def _complete(
    corpus: DatasetDict, text_column: str, validation_fraction: float, test_fraction: float, where: str,
    number_rows: bool = False, needs_train: bool = True, setting: str = "data.text_column", words: bool = False,
    check: Callable[..., None] | None = None, hashes: Callable[[Dataset, str], np.ndarray] = text_hashes,
    files: str = "data.files",
) -> DatasetDict:  # fmt: skip
    """Keep the known splits, check that each has text, and split off the missing ones from train."""
    corpus = DatasetDict({split: corpus[split] for split in SPLITS if split in corpus})
    if "train" not in corpus and (needs_train or not corpus):
        raise UserError(f"{where}: no train split; found {', '.join(corpus) or 'none'}; give {files}.train")
    for split, dataset in corpus.items():
        (check or check_text)(dataset, text_column, f"{where} ({split})", setting, words)
        if len(dataset) == 0:
            raise UserError(f"{where}: the {split} split is empty; give it rows, or remove the split")
    fractions = {"validation": validation_fraction, "test": test_fraction}
    wanted = {split: share for split, share in fractions.items() if share and split not in corpus}
    if wanted and "train" in corpus:
        if number_rows:
            corpus["train"] = numbered(corpus["train"])
        corpus = hold_out(corpus, wanted, text_column, where, hashes, files)
    return corpus if needs_train else DatasetDict(without_train(corpus))


def without_train(splits: dict[str, T]) -> dict[str, T]:
    """Return all splits but train; where there is only train, train."""
    return {split: rows for split, rows in splits.items() if split != "train"} or splits


def train_examples(splits: dict[str, dict[str, Dataset]]) -> dict[str, int]:
    """Return the number of examples of train, for result.json; nothing without train. splits: split -> part -> rows."""
    return {"train_examples": sum(map(len, splits["train"].values()))} if "train" in splits else {}


def numbered(dataset: Dataset) -> Dataset:
    """Add the column that `source_rows` reads, unless it is there."""
    return dataset if ROW in dataset.column_names else dataset.add_column(ROW, np.arange(len(dataset)))  # type: ignore[arg-type]


def read_parallel(
    files: dict[str, list[str]],
    max_rows: int | None = None,
    validation_fraction: float = 0.0,
    test_fraction: float = 0.0,
    say: Callable[[str], object] = lambda line: None,
    needs_train: bool = True,
    setting: str = "parallel",
) -> DatasetDict:
    """Load parallel text files, split -> [sources, targets]; line n of one file belongs to line n of the other.

    Returns the columns `source` and `target`. Raises UserError as `load_corpus`, and for files of unequal length (names
    the first line without a partner).
    """
    corpus = DatasetDict()
    for split, paths in files.items():
        if len(paths) != 2:
            raise UserError(f"{setting}.{split}: give two files, [sources, targets], not {len(paths)}")
        sides = [read_files(split, path, "line", form="txt") for path in paths]
        short, long = sorted((0, 1), key=lambda side: len(sides[side]))
        if len(sides[short]) < len(sides[long]):
            raise UserError(
                f"{paths[long]}, line {len(sides[short]) + 1}: no matching line, because {paths[short]} is shorter; "
                "give two files with the same number of lines"
            )
        names = ("source", "target")
        columns = [side.rename_column("text", name) for side, name in zip(sides, names, strict=True)]
        corpus[split] = _first_rows(concatenate_datasets(columns, axis=1), split, max_rows, say)
    fractions = validation_fraction, test_fraction
    return _complete(corpus, "source", *fractions, setting, needs_train=needs_train, files=setting)


def check_column(dataset: Dataset, column: str, where: str, setting: str = "data.text_column") -> None:
    """Raise UserError when the data set has no such column; name the nearest one."""
    if column not in dataset.column_names:
        raise missing_column(column, dataset.column_names, where, setting)


def check_text(
    dataset: Dataset, column: str, where: str, setting: str = "data.text_column", words: bool = False
) -> None:
    """Raise UserError when the data set has no such column or the column does not hold text.

    words: lists of texts are allowed, too.
    """
    check_column(dataset, column, where, setting)
    feature: Any = dataset.features[column]
    feature = getattr(feature, "feature", feature) if words else feature
    kind = getattr(feature, "dtype", type(feature).__name__)
    if kind not in ("string", "large_string", "null"):
        what = "text or lists of texts" if words else "text"
        raise UserError(f"{where}: column {column!r} holds {kind}, not {what}  (setting: {setting})")


def refuse_missing(dataset: Dataset, columns: Sequence[str], where: str) -> None:
    """Raise UserError with the first row that has no text (null) in one of the columns."""
    if len(rows := missing_rows(dataset, columns)):
        more = f" (and {len(rows) - 1:,} more rows)" if len(rows) > 1 else ""
        named = " or ".join(map(repr, columns))
        place = source_rows(dataset)[int(rows[0])]
        raise UserError(f"{where}, row {place}: no text (null) in {named}{more}; fill or drop it")


def hold_out(
    corpus: DatasetDict, wanted: dict[str, float], text_column: str, where: str,
    hashes: Callable[[Dataset, str], np.ndarray] = text_hashes, files: str = "data.files",
) -> DatasetDict:  # fmt: skip
    """Move a share of train into new splits. The hash of a text, as a number in [0, 1), decides its split."""
    section = files.rpartition(".")[0]
    points = hashes(corpus["train"], text_column).astype(np.float64) / 2**64
    left, rows_of = np.ones(len(points), dtype=bool), {}
    for split, share in wanted.items():
        chosen = left & (points >= 0) & (points < share)
        rows_of[split], left, points = np.flatnonzero(chosen), left & ~chosen, points - share
    rows_of = {"train": np.flatnonzero(left)} | rows_of
    for split, indices in rows_of.items():
        if not len(indices):
            if split == "train":
                raise UserError(
                    f"{where}: none of {len(points)} rows is left for train, perhaps because all have equal texts; "
                    f"lower {section}.{next(iter(wanted))}_fraction or give {files}.{next(iter(wanted))}"
                )
            different = len(np.unique(points))
            rows = f"{len(points)} rows" + (f" with {different} different texts" if different < len(points) else "")
            raise UserError(
                f"{where}: {rows} are too few to split off {split}, because the text decides the split of a row; raise "
                f"{section}.{split}_fraction or give {files}.{split}"
            )
    return DatasetDict(corpus | {split: corpus["train"].select(indices) for split, indices in rows_of.items()})
