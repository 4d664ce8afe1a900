"""Read pairs of texts from anywhere, and mix the pairs of several tasks by weight."""

from collections.abc import Callable

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from decero.config.finetuning import PairData, PairTask
from decero.data.columns import rows_with_text
from decero.data.corpus import check_column, check_text, load_corpus, read_parallel
from decero.data.messages import dialogue_pairs
from decero.errors import UserError
from decero.tasks.base import cut_note

Texts = dict[str, DatasetDict]  # part -> split -> rows of `source` and `target`


def load_pairs(
    data: PairData, seed: int, say: Callable[[str], object] = lambda line: None, needs_train: bool = True
) -> Texts:
    """The pairs of every task, train cut to the label budget. Training pairs with an empty side are left out.

    say: called with a line about rows that a setting leaves out. needs_train: as for `load_corpus`.

    Raises UserError: what `load_corpus` refuses, a column that is missing or not text, no pair that is left.
    """
    return {
        name: _load(f"data.tasks.{name}", task, data.max_train_rows, seed, say, needs_train)
        for name, task in data.tasks.items()
    }


def _load(
    where: str, task: PairTask, budget: int | None, seed: int, say: Callable[[str], object], needs_train: bool
) -> DatasetDict:
    columns = {task.source_column: "source", task.target_column: "target"}
    named = ((task.group_column, "group"), (task.answer_column, "answer"))
    more = {column: kind for column, kind in named if column is not None}

    def say_where(line: str) -> None:
        say(f"{where} {line}")

    if task.parallel is not None:
        columns = {"source": "source", "target": "target"}
        fractions = task.validation_fraction, task.test_fraction
        corpus = read_parallel(task.parallel, task.max_rows, *fractions, say_where, needs_train, f"{where}.parallel")
    elif (messages := task.messages_column) is not None:
        columns = {name: name for name in ("source", "target", "row")}
        corpus = load_corpus(
            **task.source(), text_column=messages, columns=_settings(where, {messages: "messages"} | more),
            to_pairs=lambda found: dialogue_pairs(found, messages, list(more), where), say=say_where,
            needs_train=needs_train, setting=f"{where}.files",
        )  # fmt: skip
    else:
        settings = _settings(where, columns | more)
        corpus = load_corpus(
            **task.source(), text_column=task.source_column, columns=settings, say=say_where,
            needs_train=needs_train, setting=f"{where}.files",
        )  # fmt: skip
    columns = columns | more
    for split, dataset in corpus.items():
        for column, kind in columns.items():
            if kind in ("source", "target"):
                check_text(dataset, column, f"{where} ({split})", f"{where}.{kind}_column")
            else:
                check_column(dataset, column, f"{where} ({split})", f"{where}.{kind}_column")
        kept = dataset.select_columns(list(columns))
        corpus[split] = kept.rename_columns({old: new for old, new in columns.items() if old != new})
    if "train" not in corpus:
        return corpus
    train = corpus["train"]
    full = rows_with_text(train, ["source", "target"])
    if not len(full):
        raise UserError(f"{where}: no pair of train has text on both sides")
    if len(full) < len(train):
        say(f"{where} train: {len(full):,} of {len(train):,} pairs have text on both sides; the others are left out")
    if budget is not None and budget < len(full):
        for line in cut_note(f"{where} train", budget, len(full), "data.max_train_rows"):
            say(line)
        full = np.sort(np.random.default_rng(seed).permutation(full)[:budget])
    corpus["train"] = train.select(full) if len(full) < len(train) else train
    return corpus


def _settings(where: str, columns: dict[str, str]) -> dict[str, str]:
    """Return column -> the setting that names it."""
    return {column: f"{where}.{kind}_column" for column, kind in columns.items()}


def mix(rows: dict[str, Dataset], tasks: dict[str, PairTask], seed: int) -> Dataset:
    """One data set in which each task stands as often as its weight says: 2.5 is twice, and half of it once more."""
    parts: list[Dataset] = []
    for name, dataset in rows.items():
        times, rest = divmod(tasks[name].weight, 1)
        more = np.random.default_rng([seed, len(parts)]).permutation(len(dataset))[: round(rest * len(dataset))]
        places = np.concatenate([np.tile(np.arange(len(dataset)), int(times)), np.sort(more)])
        parts.append(dataset if tasks[name].weight == 1 else dataset.select(places))
    if not sum(map(len, parts)):
        raise UserError("data.tasks: the weights leave nothing to train on; raise them")
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]
