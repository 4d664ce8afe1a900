"""Read labels from any column layout, check them across splits, encode them as numbers; label budgets."""

import itertools

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Sequence, Value
from sklearn.model_selection import train_test_split

from decero.data.corpus import check_column
from decero.errors import UserError, did_you_mean

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def encode_labels(corpus: DatasetDict, column: str | list[str], problem_type: str) -> tuple[DatasetDict, list[str]]:
    """Add a `labels` column to every split and return the label names, taken from train only.

    single label: strings, integers or a ClassLabel -> int64.
    multi label: a column of lists, or several 0/1 columns -> float32 vectors of 0/1.
    regression: numbers -> float32; the only name is `value`.

    Raises UserError: a missing column; a label that is not in train (with split and row); a missing or wrong value.
    """
    columns = [column] if isinstance(column, str) else column
    for split, dataset in corpus.items():
        for c in columns:
            check_column(dataset, c, split, "data.label_column")
    if len(columns) > 1 and problem_type != "multi_label_classification":
        raise UserError(
            f"data.label_column: several columns are only for multi_label_classification, not for {problem_type}"
        )
    if problem_type == "regression":
        return _map(corpus, lambda split, d: _numbers(split, d, columns[0]), Value("float32")), ["value"]
    if problem_type == "multi_label_classification" and not isinstance(column, str):
        return _map(corpus, lambda split, d: _indicators(split, d, columns), Sequence(Value("float32"))), columns

    feature = corpus["train"].features[columns[0]]
    # Benchmarks hide the labels of a test split by writing -1 everywhere. Such a split cannot be scored, so drop it.
    hidden = [s for s, d in corpus.items() if s != "train" and set(map(str, d[columns[0]])) <= {"-1", "None"}]
    corpus = DatasetDict({s: d for s, d in corpus.items() if s not in hidden})
    inner = getattr(feature, "feature", feature)  # the feature of one label in a list of labels
    classes = inner if isinstance(inner, ClassLabel) else None

    def as_names(value):
        values = value if isinstance(value, list) else [value]
        return [classes.int2str(v) if classes and isinstance(v, int) and v >= 0 else v for v in values]

    many = problem_type == "multi_label_classification"
    is_list = isinstance(next((v for v in corpus["train"][columns[0]] if v is not None), None), list)
    if many != is_list:
        hint = "multi_label_classification" if is_list else "single_label_classification"
        raise UserError(
            f"data.label_column: {columns[0]!r} holds {'lists' if is_list else 'single values'}, which does not fit "
            f"{problem_type}; did you mean objective.problem_type={hint}?"
        )
    present = {n for v in corpus["train"][columns[0]] for n in as_names(v)} - {None}
    names = [n for n in classes.names if n in present] if classes else sorted(present, key=_natural)
    ids = {name: i for i, name in enumerate(names)}
    if len(names) < (1 if many else 2):
        raise UserError(f"train: column {columns[0]!r} holds {len(names)} label; too few to learn from")

    def encode(split: str, dataset: Dataset):
        encoded = []
        for row, value in enumerate(dataset[columns[0]]):
            for name in as_names(value):
                if name not in ids:
                    near = (
                        did_you_mean(str(name), map(str, names)) or f"; labels of train: {', '.join(map(str, names))}"
                    )
                    unlabelled = name is None or name == -1
                    problem = "no label" if unlabelled else f"label {name!r} is not in train{near}"
                    raise UserError(f"{split}, row {row}: {problem}  (column {columns[0]!r})")
            present_ids = [ids[n] for n in as_names(value)]
            encoded.append([float(i in present_ids) for i in range(len(names))] if many else present_ids[0])
        return encoded

    feature = Sequence(Value("float32")) if many else Value("int64")
    return _map(corpus, encode, feature), [str(n) for n in names]


def _natural(name):
    """Sort key: numbers first, in numeric order, then strings in alphabetical order."""
    return (isinstance(name, str), name)


def _map(corpus: DatasetDict, encode, feature) -> DatasetDict:
    encoded = {}
    for split, dataset in corpus.items():
        values = encode(split, dataset)
        kept = dataset.remove_columns("labels") if "labels" in dataset.column_names else dataset
        encoded[split] = kept.add_column("labels", values, feature=feature)
    return DatasetDict(encoded)


def _numbers(split: str, dataset: Dataset, column: str) -> list[float]:
    for row, value in enumerate(dataset[column]):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UserError(f"{split}, row {row}: {value!r} is not a finite number  (column {column!r})")
    return [float(v) for v in dataset[column]]


def _indicators(split: str, dataset: Dataset, columns: list[str]) -> list[list[float]]:
    rows = [list(values) for values in zip(*(dataset[c] for c in columns), strict=True)]
    for row, (column, value) in ((r, cv) for r, vs in enumerate(rows) for cv in zip(columns, vs, strict=True)):
        if value not in (0, 1):
            raise UserError(f"{split}, row {row}: {value!r} is neither 0 nor 1  (column {column!r})")
    return [[float(v) for v in values] for values in rows]


def label_budget(train: Dataset, budget: int | None, problem_type: str, seed: int) -> Dataset:
    """Draw `budget` examples of train; each class of a single-label task keeps its share.

    The draw depends only on (train, budget, seed). Raises UserError when the budget is above the number of examples or
    below one per class.
    """
    if budget is None or budget == len(train):
        return train
    labels = np.asarray(train["labels"]) if problem_type == "single_label_classification" else None
    least = 1 if labels is None else len(set(labels.tolist()))
    if not least <= budget < len(train):
        raise UserError(
            f"data.max_train_rows: {budget} is outside {least} (one per class) to {len(train)} (all of train)"
        )
    if labels is not None and (len(train) - budget < least or np.bincount(labels).min() < 2):
        labels = None  # too few rows on one side to keep the shares
    keep, _ = train_test_split(np.arange(len(train)), train_size=budget, random_state=seed, stratify=labels)
    return train.select(sorted(itertools.chain(keep.tolist())))
