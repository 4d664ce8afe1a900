"""Read all parts of a run from its folder or configuration.

The parts are corpus, rows, objective, model and log.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from accelerate.utils import send_to_device
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decero.config.sections import ModelSection
from decero.config.yaml_files import read_yaml
from decero.data.order import RowIndex, Rows, epoch_order
from decero.data.stream import Texts
from decero.doctor.findings import Finding, NotExaminedError
from decero.doctor.identify import recipe_of
from decero.doctor.run_files import damaged_files, read_log, read_result
from decero.execution.objective import Batch, Objective
from decero.tasks import TASKS, Corpus, Task

CHARACTERS = 4_000_000  # most characters of train to tokenize: about 30 s on one core
PICTURE = 400  # a picture takes the time of this many characters
BATCH_ROWS, BATCH_TOKENS = 8, 1024  # size of a test batch


class Folded(NamedTuple):
    """Hold hashes and lengths of the texts of a split, with white space folded.

    keys: 64-bit hash per row, 0 for a row with an empty text. lengths: characters per row.
    """

    keys: np.ndarray
    lengths: np.ndarray
    tasks: dict[str, int]  # task -> number of rows, in order

    def place(self, row: int) -> str:
        """Name a row: `row 7`, or `row 7 of help` if there are tasks. The first row is row 0."""
        for task, size in self.tasks.items():
            if row < size:
                return f"row {row}{f' of {task}' if task else ''}"
            row -= size
        raise IndexError(row)


@dataclass
class InspectedRun:
    """Hold a run, before or after training. folder: its output folder, if it exists."""

    task: Task
    folder: Path | None = None

    @property
    def config(self) -> Any:
        """Return the settings of the run."""
        return self.task.config

    @property
    def name(self) -> str:
        """Return the name of the recipe that the settings are for."""
        return self.task.recipe

    @property
    def reads(self) -> str:
        """Return what the task reads: texts, or pictures, which have no tokenizer."""
        return "texts" if self.task.tokenizer_needs else "pictures"

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the run.

        Raises UserError if there is none or if it does not match the checkpoint.
        """
        return self.task.tokenizer

    @cached_property
    def corpus(self) -> Corpus:
        """Return the texts. Raises UserError as the recipe does."""
        corpus = self.task.read_corpus(strict=False)
        if isinstance(corpus.splits["train"].get(""), Texts):
            corpus.splits["train"][""] = corpus.splits["train"][""].first(self.config.data.buffer_size)
        self.task.corpus = corpus  # read once; defines the labels
        return corpus

    @cached_property
    def folded(self) -> dict[str, Folded]:
        """Return split -> folded texts. Labels are left out; for pairs both sides count."""
        if self.reads == "pictures":
            task: Any = self.task
            keys = {split: task.text_keys(parts[""], split) for split, parts in self.corpus.splits.items()}
            return {split: Folded(each, np.full(len(each), PICTURE), {"": len(each)}) for split, each in keys.items()}
        return {split: _fold(parts, self.corpus.columns) for split, parts in self.corpus.splits.items()}

    @cached_property
    def share(self) -> float:
        """Return the share of train to tokenize: evenly spaced texts of about CHARACTERS."""
        return min(1.0, CHARACTERS / max(1, int(self.folded["train"].lengths.sum())))

    def sample_texts(self, wanted: int) -> list[str]:
        """Return about `wanted` evenly spaced texts of train, without empty ones.

        For pairs these are the texts of the first column.
        """
        column, parts = self.corpus.columns[0], self.corpus.splits["train"].values()
        share = wanted / max(1, sum(map(len, parts)))
        texts = [t for d in parts if len(d) for t in d.select(_even(len(d), math.ceil(len(d) * share)))[column][:]]
        return [text for text in texts if text and text.strip()]

    @cached_property
    def rows(self) -> Dataset:
        """Tokenize train, or an even sample of it. Raises UserError as the recipe does."""
        train = self.corpus.splits["train"]
        if self.share < 1:
            train = {task: d.select(_even(len(d), math.ceil(len(d) * self.share))) for task, d in train.items()}
        return self.task.mix(self.task.tokenize(train, "train"))

    @cached_property
    def model_config(self) -> Any:
        """Return the configuration of the initial model. Raises UserError as `build` does."""
        return self.model.config

    @cached_property
    def objective(self) -> Objective:
        """Return the objective that the run reports: the loss without label smoothing."""
        return self.task.reported_objective(self.model)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Return the initial model of the run. Do not change it."""
        return self.build()

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Return the readable lines of metrics.jsonl."""
        return read_log(self.folder)[0] if self.folder else []

    @cached_property
    def result(self) -> dict[str, Any]:
        """Return result.json, or an empty record if it is missing or damaged."""
        return read_result(self.folder)[0] if self.folder else {}

    @cached_property
    def damage(self) -> list[Finding]:
        """Return what is wrong with the files in the run's folder."""
        return list(damaged_files(self.folder)) if self.folder else []

    @property
    def trained(self) -> Path | None:
        """Return the folder model/ if the run has written it and it is intact."""
        found = self.folder / "model" if self.folder else None
        if found is None or not found.is_dir():
            return None
        lost = [each for each in self.damage if each.check == "files" and Path(each.where).is_relative_to(found)]
        return None if lost else found

    def build(self, section: ModelSection | None = None) -> PreTrainedModel:
        """Build a new copy of the initial model, or load the model of `section` for the task.

        Raises UserError as the recipe does.
        """
        model = self.task.build_model(section)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # type: ignore[arg-type]

    def batch(self, number: int = 0) -> Batch:
        """Collate a small batch of the rows that the run reads first.

        The same `number` always gives the same rows, another number gives other rows.
        """
        order, lengths = epoch_order(self.config.seed, 0, len(self.rows)), self.objective.row_sizes(self.rows).most
        start = number * BATCH_ROWS % max(1, len(order) - BATCH_ROWS + 1)
        chosen = order[start : start + BATCH_ROWS]
        fits = max(2, int((np.cumsum(lengths[chosen]) <= BATCH_TOKENS).sum()))
        rows = Rows(self.rows).__getitems__([RowIndex(0, int(row)) for row in chosen[:fits]])
        return send_to_device(self.objective.collate(rows), "cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def labels(self) -> torch.Tensor:
        """Return the scored labels of all rows.

        Shape (items,) for token ids, classes or numbers, and (examples, labels) for labels of 0 and 1.
        """
        found, rows = [], Rows(self.rows)
        for start in range(0, len(rows), 256):
            indices = [RowIndex(0, row) for row in range(start, min(start + 256, len(rows)))]
            found.append(scored(self.objective.collate(rows.__getitems__(indices))))
        return torch.cat(found)

    @cached_property
    def steps(self) -> int:
        """Return the optimizer steps of the run.

        This is an estimate if train is sampled or if batches are set in tokens.
        """
        training = self.config.training
        if training.max_train_steps:
            return training.max_train_steps
        size = len(self.rows)
        if training.global_batch_tokens:
            size = int(self.objective.row_sizes(self.rows).mean.sum())
        whole = size / self.share
        return training.num_train_epochs * math.ceil(
            whole / (training.global_batch_size or training.global_batch_tokens)
        )


def scored(batch: Batch) -> torch.Tensor:
    """Return the labels of a batch without positions that are not scored."""
    labels: Any = batch["labels"]
    if isinstance(labels, list):  # objects of pictures
        return torch.cat([each["class_labels"] for each in labels])
    return labels if labels.is_floating_point() else labels[labels >= 0]


def open_run(where: str, recipe: str | None = None, changes: Sequence[str] = ()) -> InspectedRun:
    """Read the folder of a run or a configuration file.

    recipe: name of the recipe, if the settings fit several. changes: `key.sub=value` words for a configuration file.
    Raises UserError if `where` is neither of both, if there are changes to the settings of a folder, if no recipe
    accepts the settings, if a folder asks for remote code, or if the corpus of a configuration file cannot be read.
    """
    path = Path(where)
    folder = path if os.path.isdir(path) else None
    if folder and not os.path.lexists(path := folder / "config.yaml"):
        raise NotExaminedError(
            f"{where}: no config.yaml in this folder; give the folder of a run or a configuration file"
        )
    if folder and asks_for_code(read_yaml(path)):
        raise NotExaminedError(
            f"{path}: this folder asks to run remote code (model.trust_remote_code); if you trust it, give your own "
            "configuration file instead"
        )
    if folder and changes:
        raise refused_change(where, changes)
    kind = TASKS[recipe_of(path, recipe, changes)]
    config = kind.Config.load(str(path), changes)
    sys.stderr.write("".join(f"{note}\n" for note in config.call.notes))
    work = inspect(kind, config, folder)
    if folder is None:
        _ = work.corpus  # refuse now what the recipe would refuse
    return work


def refused_change(where: str, changes: Sequence[str]) -> NotExaminedError:
    """Return the error for `key.sub=value` words with a folder."""
    return NotExaminedError(
        f"{changes[0]}: {where} is a folder, whose settings are fixed; remove this, or give a configuration file"
    )


def inspect(kind: type[Task], config: Any, folder: Path | None) -> InspectedRun:
    """Return what the checks read of a run with these settings."""
    if hasattr(config.objective, "scored_queries"):
        config.objective.scored_queries = False  # same loss, and hooks on the last layer see every token
    return InspectedRun(kind(config), folder)


def asks_for_code(settings: Any) -> bool:
    """Tell whether `trust_remote_code` is set anywhere in unchecked settings."""
    if isinstance(settings, dict):
        return bool(settings.get("trust_remote_code")) or any(map(asks_for_code, settings.values()))
    return isinstance(settings, list) and any(map(asks_for_code, settings))


def _fold(parts: dict[str, Dataset], columns: tuple[str, ...]) -> Folded:
    keys, lengths = [], []
    for dataset in parts.values():
        for batch in dataset.select_columns(list(columns)).iter(batch_size=1000):
            for sides in zip(*(batch[column] for column in columns), strict=True):
                texts = [" ".join((text or "").split()) for text in sides]
                keys.append(xxhash.xxh64_intdigest("\x1f".join(texts).encode("utf-8", "surrogatepass")) * all(texts))
                lengths.append(sum(map(len, texts)))
    sizes = {task: len(dataset) for task, dataset in parts.items()}
    return Folded(np.array(keys, dtype=np.uint64), np.array(lengths, dtype=np.int64), sizes)


def _even(size: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, max(1, wanted))).round().astype(int))
