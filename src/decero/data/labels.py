"""Read labels from any column layout, check them across splits, encode them as numbers; label budgets."""

import re
from collections.abc import Sequence
from unicodedata import normalize

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, List, Value
from sklearn.model_selection import train_test_split

from decero.data.corpus import check_column, source_rows
from decero.data.label_values import NUMBER, Say, are_vectors, check_flag, check_layout, check_number, is_hidden
from decero.errors import UserError, did_you_mean

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
PLACEHOLDER = re.compile(r"LABEL_(\d+)")  # what transformers calls a label without a name
Names = dict[str, list[list[str]]]  # split -> the label names of each row
Numbers = dict[str, Sequence[int]]  # split -> the number of each row in the user's file, for messages


def encode_labels(
    corpus: DatasetDict, column: str | list[str], problem_type: str, *, known: Sequence[str] = (),
    say: Say = lambda line: None,
) -> tuple[DatasetDict, list[str]]:  # fmt: skip
    """Add a `labels` column to every split and return the label names, taken from train if there is one.

    single label: text, numbers or a ClassLabel -> int64.
    multi label: a column of lists of names, a column of 0/1 vectors, or several 0/1 columns -> float32 vectors of 0/1.
    regression: numbers, also written as text -> float32; the only name is `value`.

    known: the names of the checkpoint's head, in its order; see `in_known_order`. Without train, where a model is only
    scored, the names of all splits are read, and may be some of those.
    say: called with a line for each guess: a split without labels, 0/1 vectors, spellings that are read as one.

    Names that differ only in surrounding spaces or Unicode form (NFC, NFD) are one label.
    Raises UserError: a missing column; a label that is not in train (with split and row); a missing or wrong value.
    """
    columns, many = [column] if isinstance(column, str) else column, problem_type == "multi_label_classification"
    if len(columns) > 1 and not many:
        raise UserError(
            f"data.label_column: several columns are only for multi_label_classification, not for {problem_type}"
        )
    if twice := next((c for c in columns if columns.count(c) > 1), None):
        raise UserError(f"data.label_column: it names {twice!r} twice; name each column once")
    in_columns = many and not isinstance(column, str)
    values = {split: _read(dataset, columns, split, in_columns) for split, dataset in corpus.items()}
    train, numbers = values.get("train", []), problem_type == "regression"
    for split in [split for split in values if split != "train" and is_hidden(values[split], train, numbers)]:
        say(f"{split} has no labels (-1 or null in every row of {', '.join(columns)}); it is left out")
        del values[split]
    if not values:
        raise UserError("data: no split has labels to score on; decero classify MODEL FILE predicts without them")
    corpus = DatasetDict({split: corpus[split] for split in values})
    numbers_of = {split: source_rows(dataset) for split, dataset in corpus.items()}
    if problem_type == "regression":
        found = {
            split: [
                check_number(v, f"{split}, row {row}", columns[0])
                for row, v in zip(numbers_of[split], rows, strict=True)
            ]
            for split, rows in values.items()
        }
        return _with_labels(corpus, found, Value("float32")), ["value"]

    if in_columns:
        names, named = columns, _named_places(values, numbers_of, columns, columns)
    else:
        names, named = _names(corpus, values, numbers_of, columns[0], many, say)
    if len(names) < (1 if many else 2) and "train" in values:
        raise UserError(f"train: column {columns[0]!r} holds {len(names)} label; too few to learn from")
    names = in_known_order(names, known, some="train" not in values) or names
    return _with_labels(corpus, *_encoded(named, numbers_of, names, columns[0], many)), names


def in_known_order(names: Sequence[str], known: Sequence[str], some: bool = False) -> list[str] | None:
    """Return all labels of a checkpoint's head in its order, or None if the head does not name each of `names`.

    Names must be equal; where they are not, they may differ in case, and are spelt as in `names`. A placeholder
    (`LABEL_2`) is no name: only the labels 0, 1, 2 ... fit a head of placeholders; all of them, or with `some` a part.
    """
    theirs = [plain(name) for name in known]
    numbers = [found.group(1) for found in map(PLACEHOLDER.fullmatch, theirs) if found]
    if len(numbers) == len(theirs) and not set(names) <= set(theirs):
        theirs = numbers if set(names) == set(numbers) or (some and set(names) <= set(numbers)) else []
    for fold in (str, str.casefold):
        own, folded = {fold(name): name for name in names}, [fold(name) for name in theirs]
        if len(own) == len(names) and len(set(folded)) == len(folded) and set(own) <= set(folded):
            return [own.get(key, name) for key, name in zip(folded, theirs, strict=True)]
    return None


def plain(name: str) -> str:
    """Return a name without surrounding spaces, in Unicode's NFC. Otherwise `é` has two spellings that look alike."""
    return normalize("NFC", name).strip()


def _read(dataset: Dataset, columns: list[str], split: str, in_columns: bool) -> list:
    for column in columns:
        check_column(dataset, column, split, "data.label_column")
    read = [dataset.with_format(None)[column][:] for column in columns]
    return [list(row) for row in zip(*read, strict=True)] if in_columns else read[0]


def _names(
    corpus: DatasetDict, values: dict[str, list], numbers: Numbers, column: str, many: bool, say: Say
) -> tuple[list[str], Names]:
    """Return the label names of train (of all splits without it), in order, and those of each row."""
    for split, rows in values.items():
        check_layout(rows, numbers[split], split, column, many)
    first = "train" if "train" in values else next(iter(values))
    classes = _classes(corpus[first], column)
    if many and are_vectors(values[first], column, say):
        size = max(map(len, values[first]))
        places = classes.names if classes and len(classes.names) == size else [str(place) for place in range(size)]
        say(f"{column!r} holds 0/1 vectors: one label a place, named {', '.join(places[:20])}")
        return places, _named_places(values, numbers, places, [column] * size)
    named = {
        split: _named(rows, numbers[split], split, column, _classes(corpus[split], column))
        for split, rows in values.items()
    }
    spellings: dict[str, set[str]] = {}
    for rows in named.values():
        for row in rows:
            for name in row:
                spellings.setdefault(plain(name), set()).add(name)
    for name, found in sorted(spellings.items()):
        if len(found) > 1:
            shown = ", ".join(sorted(map(ascii, found)))
            say(f"labels that differ only in surrounding spaces or Unicode form are read as one: {shown} as {name!r}")
    named = {split: [[plain(name) for name in row] for row in rows] for split, rows in named.items()}
    learnt = [named["train"]] if "train" in named else named.values()
    present = {name for rows in learnt for row in rows for name in row}
    ordered = map(plain, classes.names) if classes else sorted(present, key=natural_order)
    return [name for name in dict.fromkeys(ordered) if name in present], named


def _classes(dataset: Dataset, column: str) -> ClassLabel | None:
    """Return the ClassLabel of a column, or of the lists in it."""
    feature = dataset.features[column]
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, ClassLabel) else None


def _named(rows: list, numbers: Sequence[int], split: str, column: str, classes: ClassLabel | None) -> list[list[str]]:
    """Return the label names of each row as they are written. Raises UserError for an id without a name."""
    names = []
    for row, value in zip(numbers, rows, strict=True):
        items = value if isinstance(value, list) else [value]
        if classes and not all(0 <= item < len(classes.names) for item in items):
            raise UserError(f"{split}, row {row}: no label  (column {column!r})")
        names.append([classes.names[item] if classes else str(item) for item in items])
    return names


def _named_places(values: dict[str, list], numbers: Numbers, places: list[str], columns: list[str]) -> Names:
    """Return the names of the places that are 1 in each 0/1 vector. columns: where each place comes from."""
    named: Names = {}
    for split, rows in values.items():
        named[split] = []
        for row, vector in zip(numbers[split], rows, strict=True):
            where = f"{split}, row {row}"
            if len(vector) != len(places):
                problem = f"a 0/1 vector of {len(vector)} places, where others have {len(places)}"
                raise UserError(f"{where}: {problem}  (column {columns[0]!r})")
            flags = [check_flag(value, where, column) for column, value in zip(columns, vector, strict=True)]
            named[split].append([place for place, flag in zip(places, flags, strict=True) if flag])
    return named


def _encoded(
    named: Names, numbers: Numbers, names: list[str], column: str, many: bool
) -> tuple[dict[str, list], Value | List]:
    """Return ids, or 0/1 vectors for `many`, and their type. Raises UserError for a name that train does not have."""
    ids = {name: i for i, name in enumerate(names)}
    encoded: dict[str, list] = {}
    for split, rows in named.items():
        for row, found in zip(numbers[split], rows, strict=True):
            if unknown := next((name for name in found if name not in ids), None):
                near = did_you_mean(unknown, names) or f"; labels of train: {', '.join(names[:20])}"
                raise UserError(f"{split}, row {row}: label {unknown!r} is not in train{near}  (column {column!r})")
        encoded[split] = [[float(name in row) for name in names] if many else ids[row[0]] for row in rows]
    return encoded, List(Value("float32")) if many else Value("int64")


def natural_order(name: str) -> tuple[bool, float, str]:
    """Sort key: numbers first, in numeric order, then words in alphabetical order."""
    is_word = NUMBER.fullmatch(name) is None
    return is_word, 0.0 if is_word else float(name), name


def _with_labels(corpus: DatasetDict, labels: dict[str, list], feature: Value | List) -> DatasetDict:
    encoded = {}
    for split, dataset in corpus.items():
        kept = dataset.remove_columns("labels") if "labels" in dataset.column_names else dataset
        encoded[split] = kept.add_column("labels", labels[split], feature=feature)
    return DatasetDict(encoded)


def label_budget(train: Dataset, budget: int | None, problem_type: str, seed: int) -> Dataset:
    """Draw `budget` examples of train; each class of a single-label task keeps its share, and has at least one.

    The draw depends only on (train, budget, seed). Raises UserError when the budget is above the number of examples or
    below one per class.
    """
    return label_draw(train, budget, problem_type, seed)[0]


def label_draw(train: Dataset, budget: int | None, problem_type: str, seed: int) -> tuple[Dataset, Dataset]:
    """Return the examples that `label_budget` draws, and those that it leaves out, in the order of train."""
    if budget is None or budget == len(train):
        return train, train.select([])
    labels = np.asarray(train["labels"]) if problem_type == "single_label_classification" else None
    classes = labels
    sizes = [len(train)] if labels is None else np.unique(labels, return_counts=True)[1]
    least = len(sizes)
    if not least <= budget < len(train):
        raise UserError(
            f"data.max_train_rows: {budget} is outside {least} (one per class) to {len(train)} (all of train, or null)"
        )
    if labels is not None and (len(train) - budget < least or min(sizes) < 2):
        labels = None  # too few rows on one side to keep the shares
    keep, rest = train_test_split(np.arange(len(train)), train_size=budget, random_state=seed, stratify=labels)
    if classes is not None:
        _give_each_class_a_row(keep, rest, classes, seed)
    return train.select(sorted(keep.tolist())), train.select(sorted(rest.tolist()))


def _give_each_class_a_row(keep: np.ndarray, rest: np.ndarray, labels: np.ndarray, seed: int) -> None:
    """Exchange rows of the largest drawn class for one of each class that was not drawn, because it is rare."""
    draw = np.random.default_rng(seed)
    for missing in np.setdiff1d(labels, labels[keep]):
        drawn, counts = np.unique(labels[keep], return_counts=True)
        out = draw.choice(np.flatnonzero(labels[keep] == drawn[counts.argmax()]))
        into = draw.choice(np.flatnonzero(labels[rest] == missing))
        keep[out], rest[into] = rest[into], keep[out]
