"""Check texts and labels before tokenization."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from decero.data.corpus import check_column
from decero.data.tagged_texts import labels_of
from decero.doctor.findings import Finding, Severity, percent
from decero.doctor.inspected_run import Folded, InspectedRun

SHOWN = 3  # rows to name in a finding


def duplicates(work: InspectedRun) -> Iterator[Finding]:
    """Find rows of train that repeat an earlier row, ignoring white space.

    A share below 1 % is a note, from 20 % on it is bad.
    """
    texts = work.folded["train"]
    full = np.flatnonzero(texts.keys)
    _, first, inverse = np.unique(texts.keys[full], return_index=True, return_inverse=True)
    repeats = np.flatnonzero(first[inverse] != np.arange(len(full)))
    if not len(repeats):
        yield Finding("duplicates", "ok", f"no repeats among {len(full):,} {work.reads} of train")
        return
    share = len(repeats) / len(texts.keys)
    pairs = [(full[i], full[first[inverse[i]]]) for i in repeats[:SHOWN]]
    places = ", ".join(f"{texts.place(int(again))} repeats {texts.place(int(once))}" for again, once in pairs)
    severity: Severity = "bad" if share >= 0.2 else "warn" if share >= 0.01 else "note"
    what = f"{percent(share)} of {len(texts.keys):,} {work.reads} are repeats ({places}{_more(repeats)})"
    yield Finding("duplicates", severity, what, "train", "remove the repeats: a model memorizes them first")


def empty(work: InspectedRun) -> Iterator[Finding]:
    """Find rows with an empty text column.

    Pretraining skips such rows; every other task must answer without input.
    """
    found = False
    for split, texts in work.folded.items():
        gone = np.flatnonzero(texts.keys == 0)
        if not len(gone):
            continue
        found, share = True, len(gone) / len(texts.keys)
        severity: Severity = "bad" if share >= 0.5 else "warn" if share >= 0.01 else "note"
        what = f"{percent(share)} of {len(texts.keys):,} rows have no {work.reads[:-1]} ({_rows(texts, gone)})"
        columns = " and ".join(map(repr, work.corpus.columns))
        yield Finding("empty", severity, what, split, f"remove them, or check that the text is in column {columns}")
    if not found:
        yield Finding("empty", "ok", f"every row has {'text' if work.reads == 'texts' else 'a picture'}")


def leakage(work: InspectedRun) -> Iterator[Finding]:
    """Find texts of validation or test that are also in train, ignoring white space.

    From 1 % of the split on this is bad.
    """
    held_out = [split for split in work.folded if split != "train"]
    train, found = work.folded["train"], False
    keys, first = np.unique(train.keys, return_index=True)
    for split in held_out:
        texts = work.folded[split]
        seen = np.flatnonzero(np.isin(texts.keys, keys) & (texts.keys != 0))
        if not len(seen):
            continue
        found, share = True, len(seen) / len(texts.keys)
        pairs = [(i, first[np.searchsorted(keys, texts.keys[i])]) for i in seen[:SHOWN]]
        places = ", ".join(f"{texts.place(int(i))} is {train.place(int(j))} of train" for i, j in pairs)
        what = f"{percent(share)} of {len(texts.keys):,} {work.reads} are also in train ({places}{_more(seen)})"
        mend = f"remove them from train, or set data.{split}_fraction, which keeps equal {work.reads} in one split"
        yield Finding("leakage", "bad" if share >= 0.01 else "warn", what, split, mend)
    if not found:
        what = f"no {work.reads[:-1]} of {' or '.join(held_out)} is in train" if held_out else "train is the only split"
        yield Finding("leakage", "ok", what)


def labels(work: InspectedRun) -> Iterator[Finding]:
    """Find labels missing in a split, and a majority class that the model does not beat.

    Only for classifiers of texts and of words.
    """
    if work.name == "finetune_token_classification":
        yield from _word_labels(work)
    if work.name not in ("finetune_classification", "finetune_image_classification"):
        return
    kind = getattr(work.config.objective, "problem_type", "single_label_classification")
    if kind == "regression":
        values = np.asarray(work.corpus.splits["train"][""]["labels"])
        constant = "all numbers are equal" if values.std() == 0 else ""
        mend = "check data.label_column" if constant else ""
        spread = f"mean {values.mean():.4g}, standard deviation {values.std():.4g}"
        yield Finding("labels", "bad" if constant else "ok", constant or spread, "train", mend)
        return
    column = work.config.data.label_column
    counts = {split: _counts(parts[""], column, split) for split, parts in work.corpus.splits.items()}
    counts = {
        split: found for split, found in counts.items() if not set(found) <= {"-1", "None"}
    }  # a test split with hidden labels
    train = counts["train"]
    found = list(_missing_labels(train, {split: each for split, each in counts.items() if split != "train"}))
    found += _majority(work, counts) if kind == "single_label_classification" else []
    most, size = train.most_common(1)[0]
    fine = f"{len(train)} labels, the same in every split; {percent(size / train.total())} of rows are {most!r}"
    yield from found or [Finding("labels", "ok", fine)]


def _word_labels(work: InspectedRun) -> Iterator[Finding]:
    """Find labels of entities, or tags, that are missing in a split."""
    _ = work.corpus
    scheme = work.task.tagged.scheme  # type: ignore[attr-defined]
    counts = {
        split: Counter(label for row in labels_of(parts[""], scheme) for label in row)
        for split, parts in work.corpus.splits.items()
    }
    train = counts.pop("train")
    found = list(_missing_labels(train, counts))
    what, (most, size) = "words" if scheme == "none" else "entities", train.most_common(1)[0]
    fine = f"{len(train)} labels, the same in every split; {percent(size / train.total())} of {what} are {most!r}"
    yield from found or [Finding("labels", "ok", fine)]


def _missing_labels(train: Counter, held_out: dict[str, Counter]) -> Iterator[Finding]:
    for split, found in held_out.items():
        if unseen := [f"{name!r} ({found[name]}x)" for name in found if name not in train]:
            what = f"{', '.join(unseen[:5])}, not in train"
            yield Finding(
                "labels", "bad", what, split, "rename the label, remove these rows, or move some of them to train"
            )
    missing = [name for name in train if held_out and not any(name in found for found in held_out.values())]
    if missing:
        what = f"{', '.join(map(repr, missing[:5]))} only in train, so no evaluation measures it"
        yield Finding(
            "labels", "warn", what, "train", "move some of these rows to validation or test, or remove the label"
        )


def _majority(work: InspectedRun, counts: dict[str, Counter]) -> Iterator[Finding]:
    """Compare the accuracy with that of always predicting the most common label of train.

    The margin is two binomial standard errors.
    """
    split = work.result.get("split") or ("test" if "test" in counts else "validation")
    accuracy = (work.result.get("metric") or {}).get("accuracy")
    if accuracy is None:
        split, seen = "validation", [row["eval_accuracy"] for row in work.metrics if "eval_accuracy" in row]
        accuracy = max(seen, default=None)
    most = counts["train"].most_common(1)[0][0]
    shown = split if split in counts else "train"
    size = counts[shown].total()
    base = counts[shown][most] / size
    if accuracy is None:
        if base >= 0.8:
            what = f"always predicting {most!r} gives accuracy {percent(base)}"
            yield Finding("labels", "note", what, shown, "use f1_macro instead of accuracy")
        return
    if getattr(work.config.objective, "class_weights", "none") != "none":
        what = f"accuracy {percent(accuracy)}; objective.class_weights gives up accuracy for rare labels"
        yield Finding("labels", "note", what, shown, "read f1_macro or matthews_correlation")
        return
    error = (base * (1 - base) / size) ** 0.5
    if accuracy < base + 2 * error:
        beaten = "does not beat" if accuracy <= base else "is within two standard errors of"
        what = f"accuracy {accuracy:.3f} {beaten} always predicting {most!r} ({base:.3f} on {size:,} rows)"
        mend = "add labels or steps, or balance train; see the checks overfit and updates"
        yield Finding("labels", "bad" if accuracy <= base else "warn", what, shown, mend)


def _counts(dataset: Dataset, column: str | list[str], split: str) -> Counter:
    """Count each label. Columns of 0/1 count under their names, lists under each label.

    Raises UserError for a missing column.
    """
    for each in [column] if isinstance(column, str) else column:
        check_column(dataset, each, split, "data.label_column")
    if not isinstance(column, str):
        ones = {c: sum(bool(value) and float(value) != 0 for value in dataset[c]) for c in column}  # csv: text
        return Counter({c: count for c, count in ones.items() if count})
    feature: Any = dataset.features[column]
    inner = getattr(feature, "feature", feature)

    def name(value: Any) -> str:
        known = isinstance(inner, ClassLabel) and isinstance(value, int) and value >= 0
        return inner.int2str(value) if known else str(value)

    return Counter(name(v) for value in dataset[column] for v in (value if isinstance(value, list) else [value]))


def _rows(texts: Folded, rows: np.ndarray) -> str:
    return ", ".join(texts.place(int(row)) for row in rows[:SHOWN]) + _more(rows)


def _more(rows: np.ndarray) -> str:
    return ", ..." if len(rows) > SHOWN else ""
