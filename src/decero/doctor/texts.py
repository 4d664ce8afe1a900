"""Checks of the texts and labels themselves, before anything is tokenized."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from decero.data.corpus import check_column
from decero.doctor.findings import Finding, Severity, percent
from decero.doctor.inspected_run import Folded, InspectedRun

SHOWN = 3  # places that are named


def duplicates(work: InspectedRun) -> Iterator[Finding]:
    """Rows of train that repeat an earlier one, white space folded: note below 1 %, bad from 20 % on."""
    texts = work.folded["train"]
    full = np.flatnonzero(texts.keys)
    _, first, inverse = np.unique(texts.keys[full], return_index=True, return_inverse=True)
    repeats = np.flatnonzero(first[inverse] != np.arange(len(full)))
    if not len(repeats):
        yield Finding("duplicates", "ok", f"none among {len(full):,} texts of train")
        return
    share = len(repeats) / len(texts.keys)
    pairs = [(full[i], full[first[inverse[i]]]) for i in repeats[:SHOWN]]
    places = ", ".join(f"{texts.place(int(again))} repeats {texts.place(int(once))}" for again, once in pairs)
    severity: Severity = "bad" if share >= 0.2 else "warn" if share >= 0.01 else "note"
    what = f"{percent(share)} of {len(texts.keys):,} texts stand there already ({places}{_more(repeats)})"
    yield Finding("duplicates", severity, what, "train", "drop the repeats: they are learnt by heart first")


def empty(work: InspectedRun) -> Iterator[Finding]:
    """Rows without text in some column; which are skipped by pretraining and answered in the dark by anything else."""
    found = False
    for split, texts in work.folded.items():
        gone = np.flatnonzero(texts.keys == 0)
        if not len(gone):
            continue
        found, share = True, len(gone) / len(texts.keys)
        severity: Severity = "bad" if share >= 0.5 else "warn" if share >= 0.01 else "note"
        what = f"{percent(share)} of {len(texts.keys):,} rows have no text ({_rows(texts, gone)})"
        columns = " and ".join(map(repr, work.corpus.columns))
        yield Finding(
            "empty", severity, what, split, f"drop them, or name the column that holds the text, not {columns}"
        )
    if not found:
        yield Finding("empty", "ok", "every row has text")


def leakage(work: InspectedRun) -> Iterator[Finding]:
    """Texts of validation or test that stand in train, white space folded: bad from 1 % of the split on."""
    others = [split for split in work.folded if split != "train"]
    train, found = work.folded["train"], False
    keys, first = np.unique(train.keys, return_index=True)
    for split in others:
        texts = work.folded[split]
        seen = np.flatnonzero(np.isin(texts.keys, keys) & (texts.keys != 0))
        if not len(seen):
            continue
        found, share = True, len(seen) / len(texts.keys)
        pairs = [(i, first[np.searchsorted(keys, texts.keys[i])]) for i in seen[:SHOWN]]
        places = ", ".join(f"{texts.place(int(i))} is {train.place(int(j))} of train" for i, j in pairs)
        what = f"{percent(share)} of {len(texts.keys):,} texts stand in train, too ({places}{_more(seen)})"
        mend = f"take them out of train, or give data.{split}_fraction, which never parts equal texts"
        yield Finding("leakage", "bad" if share >= 0.01 else "warn", what, split, mend)
    if not found:
        what = f"no text of {' or '.join(others)} stands in train" if others else "no split but train"
        yield Finding("leakage", "ok", what)


def labels(work: InspectedRun) -> Iterator[Finding]:
    """Labels that one side never shows, and a majority that the model does not beat. Classifiers only."""
    if work.name != "finetune_classification":
        return
    kind = work.config.objective.problem_type
    if kind == "regression":
        values = np.asarray(work.corpus.splits["train"][""]["labels"])
        constant = "every number is the same" if values.std() == 0 else ""
        mend = "check data.label_column" if constant else ""
        spread = f"mean {values.mean():.4g}, standard deviation {values.std():.4g}"
        yield Finding("labels", "bad" if constant else "ok", constant or spread, "train", mend)
        return
    column = work.config.data.label_column
    counts = {split: _counts(parts[""], column, split) for split, parts in work.corpus.splits.items()}
    counts = {split: found for split, found in counts.items() if not set(found) <= {"-1", "None"}}  # a secret test
    train = counts["train"]
    found = list(_strangers(train, {split: each for split, each in counts.items() if split != "train"}))
    found += _majority(work, counts) if kind == "single_label_classification" else []
    most, size = train.most_common(1)[0]
    fine = f"{len(train)} labels, the same in every split; {most!r} is {percent(size / train.total())} of them"
    yield from found or [Finding("labels", "ok", fine)]


def _strangers(train: Counter, others: dict[str, Counter]) -> Iterator[Finding]:
    for split, found in others.items():
        if unseen := [f"{name!r} ({found[name]}x)" for name in found if name not in train]:
            what = f"{', '.join(unseen[:5])}, which train never shows"
            yield Finding("labels", "bad", what, split, "rename or drop those rows, or put some of them into train")
    missing = [name for name in train if others and not any(name in found for found in others.values())]
    if missing:
        what = f"{', '.join(map(repr, missing[:5]))} in train only, so nothing measures whether it was learnt"
        yield Finding("labels", "warn", what, "train", "hold some of those rows out, or drop the label")


def _majority(work: InspectedRun, counts: dict[str, Counter]) -> Iterator[Finding]:
    """Accuracy against that of always saying the most common label of train, with a binomial standard error."""
    split = work.result.get("split") or ("test" if "test" in counts else "validation")
    accuracy = (work.result.get("metric") or {}).get("accuracy")
    if accuracy is None:
        split, seen = "validation", [row["eval_accuracy"] for row in work.metrics if "eval_accuracy" in row]
        accuracy = max(seen, default=None)
    most = counts["train"].most_common(1)[0][0]
    where = split if split in counts else "train"
    size = counts[where].total()
    base = counts[where][most] / size
    if accuracy is None:
        if base >= 0.8:
            what = f"always saying {most!r} is right {percent(base)} of the time"
            yield Finding("labels", "note", what, where, "read f1_macro, not accuracy")
        return
    error = (base * (1 - base) / size) ** 0.5
    if accuracy < base + 2 * error:
        beaten = "does not beat" if accuracy <= base else "is within two standard errors of"
        what = f"accuracy {accuracy:.3f} {beaten} always saying {most!r} ({base:.3f} of {size:,})"
        mend = "give more labels or steps, or balance train; look at overfit and learning rate below"
        yield Finding("labels", "bad" if accuracy <= base else "warn", what, where, mend)


def _counts(dataset: Dataset, column: str | list[str], split: str) -> Counter:
    """Label -> how often. Several 0/1 columns are labels by their names; a list of labels counts each.

    Raises UserError for a column that is not there.
    """
    for each in [column] if isinstance(column, str) else column:
        check_column(dataset, each, split, "data.label_column")
    if not isinstance(column, str):
        return Counter({c: int(sum(map(bool, dataset[c]))) for c in column if any(dataset[c])})
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
