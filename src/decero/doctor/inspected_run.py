"""What a run is made of, from its folder or its configuration alone: corpus, rows, objective, model, what it logged."""

import json
import math
from collections.abc import Iterator
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
from decero.doctor.identify import recipe_of
from decero.errors import UserError
from decero.execution.objective import Batch, Objective
from decero.tasks import TASKS, Corpus, Task

CHARACTERS = 4_000_000  # of train that are tokenized: half a minute on one core
BATCH_ROWS, BATCH_TOKENS = 8, 1024  # of a batch that is tried


class Folded(NamedTuple):
    """A split's texts, white space folded: a 64-bit hash a row (0 where nothing is left), characters, names of rows."""

    keys: np.ndarray
    lengths: np.ndarray
    tasks: dict[str, int]  # task -> rows, in order

    def place(self, row: int) -> str:
        """`row 7`, or `row 7 of help` where there are tasks. Rows are counted from 0, as everywhere."""
        for task, size in self.tasks.items():
            if row < size:
                return f"row {row}{f' of {task}' if task else ''}"
            row -= size
        raise IndexError(row)


@dataclass
class InspectedRun:
    """A run before or after it ran. folder: where it ran, if it did."""

    task: Task
    corpus: Corpus
    folder: Path | None = None

    @property
    def config(self) -> Any:
        """The settings of the run."""
        return self.task.config

    @property
    def name(self) -> str:
        """The recipe that the settings are for."""
        return self.task.recipe

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The run's own. Raises UserError for none, or one that does not match its checkpoint."""
        return self.task.tokenizer

    @cached_property
    def folded(self) -> dict[str, Folded]:
        """Split -> its texts. For labelled texts the label is no part of them; of a pair both sides are."""
        return {split: _fold(parts, self.corpus.columns) for split, parts in self.corpus.splits.items()}

    @cached_property
    def share(self) -> float:
        """How much of train is tokenized: evenly chosen texts of about CHARACTERS."""
        return min(1.0, CHARACTERS / max(1, int(self.folded["train"].lengths.sum())))

    def some_texts(self, wanted: int) -> list[str]:
        """About so many texts of train, evenly chosen; of a pair the first, and none that is empty."""
        column, parts = self.corpus.columns[0], self.corpus.splits["train"].values()
        share = wanted / max(1, sum(map(len, parts)))
        texts = [t for d in parts if len(d) for t in d.select(_even(len(d), math.ceil(len(d) * share)))[column][:]]
        return [text for text in texts if text and text.strip()]

    @cached_property
    def rows(self) -> Dataset:
        """Train, or an even sample of it, as token rows. Raises UserError where the recipe would."""
        train = self.corpus.splits["train"]
        if self.share < 1:
            train = {task: d.select(_even(len(d), math.ceil(len(d) * self.share))) for task, d in train.items()}
        return self.task.mix(self.task.tokenize(train, "train"))

    @cached_property
    def model_config(self) -> Any:
        """The configuration of the model as it starts. Raises UserError for one that cannot be built."""
        return self.model.config

    @cached_property
    def objective(self) -> Objective:
        """What the run reports: its loss without label smoothing."""
        return self.task.reported_objective(self.model)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model as the run starts; to look at, not to change."""
        return self.build()

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last one that a kill cut short is no line."""
        path = self.folder / "metrics.jsonl" if self.folder else None
        return list(_json_lines(path)) if path and path.is_file() else []

    @cached_property
    def result(self) -> dict[str, Any]:
        path = self.folder / "result.json" if self.folder else None
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}

    @property
    def trained(self) -> Path | None:
        """model/, when the run has left one."""
        found = self.folder / "model" if self.folder else None
        return found if found and (found / "config.json").is_file() else None

    def build(self, section: ModelSection | None = None) -> PreTrainedModel:
        """A copy of the model as the run starts, or another one for its task. Raises UserError as the recipe does."""
        model = self.task.build_model(section)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # type: ignore[arg-type]

    def batch(self, number: int = 0) -> Batch:
        """A small batch of the rows that the run reads first: other rows for another `number`, the same every time."""
        order, lengths = epoch_order(self.config.seed, 0, len(self.rows)), self.objective.row_sizes(self.rows).most
        start = number * BATCH_ROWS % max(1, len(order) - BATCH_ROWS + 1)
        chosen = order[start : start + BATCH_ROWS]
        fits = max(2, int((np.cumsum(lengths[chosen]) <= BATCH_TOKENS).sum()))
        rows = Rows(self.rows).__getitems__([RowIndex(0, int(row)) for row in chosen[:fits]])
        return send_to_device(self.objective.collate(rows), "cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def labels(self) -> torch.Tensor:
        """What is scored in all rows, flat: (items,) ids, classes or numbers, or (examples, labels) of 0 and 1."""
        found, rows = [], Rows(self.rows)
        for start in range(0, len(rows), 256):
            places = [RowIndex(0, row) for row in range(start, min(start + 256, len(rows)))]
            found.append(scored(self.objective.collate(rows.__getitems__(places))))
        return torch.cat(found)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole run; estimated where train was sampled or steps are counted in tokens."""
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
    """The labels of a batch without what nobody scores."""
    labels = batch["labels"]
    return labels if labels.is_floating_point() else labels[labels >= 0]


def asks_for_code(settings: Any) -> bool:
    """Whether `trust_remote_code` is set anywhere in settings that nobody has checked."""
    if isinstance(settings, dict):
        return bool(settings.get("trust_remote_code")) or any(map(asks_for_code, settings.values()))
    return isinstance(settings, list) and any(map(asks_for_code, settings))


def open_run(where: str, asked: str | None = None) -> InspectedRun:
    """Read a run's folder or a configuration file.

    Raises UserError: neither, settings that no recipe takes, a corpus that cannot be read, a folder whose settings ask
    for remote code.
    """
    path = Path(where)
    folder = path if path.is_dir() else None
    if folder and not (path := folder / "config.yaml").is_file():
        raise UserError(f"{where}: holds no config.yaml; give a run's folder or a configuration file")
    if folder and asks_for_code(read_yaml(str(path))):
        raise UserError(
            f"{path}: asks for code from elsewhere (model.trust_remote_code), and a folder may be anybody's; "
            "to run that code give the configuration file instead"
        )
    kind = TASKS[recipe_of(path, asked)]
    config: Any = kind.Config.load(str(path))
    if hasattr(config.objective, "scored_queries"):
        config.objective.scored_queries = False  # the same loss, and every layer is seen with every token
    task = kind(config)
    corpus = task.read_corpus(strict=False)
    task.corpus = corpus  # what its labels are; read once
    if isinstance(corpus.splits["train"].get(""), Texts):
        corpus.splits["train"][""] = corpus.splits["train"][""].first(config.data.buffer_size)
    return InspectedRun(task, corpus, folder)


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


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
