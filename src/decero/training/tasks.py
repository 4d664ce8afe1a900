"""Text-to-text tasks: pairs of texts from anywhere, told apart by a prefix, mixed by weight, scored on what is written.

Everything a model may be asked to write is such a task: Raffel et al. 2020, section 2.4.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, concatenate_datasets
from pydantic import Field, field_validator, model_validator
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.data.columns import rows_with_text
from decero.data.corpus import check_text, load_corpus, read_parallel
from decero.data.rows import tokenize_pairs
from decero.errors import UserError
from decero.evaluation.text_metrics import TEXT_METRICS, compute_text_metrics
from decero.training.config import Section, SourceSection
from decero.training.decode import TOKENS_PER_BATCH, decode
from decero.training.generation_check import warn_of_generation
from decero.training.sharded import whole

Texts = dict[str, DatasetDict]  # task -> split -> rows of `source` and `target`


class TaskSection(SourceSection):
    parallel: dict[str, list[str]] | None = Field(
        None, description="instead: train, validation, test -> [sources.txt, targets.txt]; line n answers line n"
    )
    source_column: str = Field("source", description="column of what is read")
    target_column: str = Field("target", description="column of what is to be written")
    prefix: str = Field("", description="put before every source, e.g. 'summarize: '")
    weight: float = Field(1.0, gt=0, description="times an epoch goes through it; 0.5 draws half of it")

    @model_validator(mode="after")
    def _one_source(self):
        if sum(each is not None for each in (self.name, self.files, self.parallel)) != 1:
            raise ValueError("a task has exactly one of name (a data set), files (split -> paths) and parallel")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.streaming and self.name is None:
            raise ValueError("streaming is for data sets by name; files are memory-mapped already, leave it out")
        return self


class TasksSection(Section):
    tasks: dict[str, TaskSection] = Field(description="name -> a data set of pairs")
    max_source_length: int = Field(128, ge=4, description="tokens of a source, prefix and special ones included")
    max_target_length: int = Field(128, ge=4, description="tokens of a target, special ones included")
    max_train_rows: int | None = Field(
        None, ge=1, description="label budget: train on so many pairs of each task, chosen by the seed"
    )
    num_proc: int | None = Field(None, ge=1, description="processes that tokenize; chosen by corpus size when not set")

    @field_validator("tasks")
    @classmethod
    def _some(cls, tasks):
        if not tasks:
            raise ValueError("name at least one task")
        return tasks


class WritingSection(Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over the vocabulary")


class GenerationSection(Section):
    metric: Literal["translation", "summarization", "text"] = Field(
        "text", description="BLEU and chrF, ROUGE, or exact match and F1 of words"
    )
    num_beams: int = Field(1, ge=1, description="beams at the end of the run; evaluations on the way are greedy")
    length_penalty: float = Field(1.0, description="above 1 long answers are preferred, with beams")
    max_new_tokens: int = Field(128, ge=1, description="tokens an answer, at most")
    validation_rows: int = Field(
        200, ge=0, description="pairs of each validation split that evaluations answer; 0: only the loss is looked at"
    )

    @model_validator(mode="after")
    def _penalty_of_beams(self):
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise ValueError("generation.length_penalty compares beams; raise generation.num_beams or leave it out")
        return self


def load_tasks(data: TasksSection, seed: int) -> Texts:
    """The pairs of every task, train cut to the label budget. Training pairs with an empty side are left out.

    Raises UserError: what `load_corpus` refuses, a column that is missing or not text, no pair that is left.
    """
    return {name: _load(f"data.tasks.{name}", task, data.max_train_rows, seed) for name, task in data.tasks.items()}


def _load(where: str, task: TaskSection, budget: int | None, seed: int) -> DatasetDict:
    columns = {task.source_column: "source", task.target_column: "target"}
    if task.parallel is not None:
        columns = {"source": "source", "target": "target"}
        corpus = read_parallel(task.parallel, task.max_rows, task.validation_fraction, task.test_fraction)
    else:
        corpus = load_corpus(**task.source(), text_column=task.source_column)
    for split, dataset in corpus.items():
        for column in columns:
            check_text(dataset, column, f"{where} ({split})", f"{where}.{columns[column]}_column")
        kept = dataset.select_columns(list(columns))
        corpus[split] = kept.rename_columns({old: new for old, new in columns.items() if old != new})
    train = corpus["train"]
    full = rows_with_text(train, ["source", "target"])
    if not len(full):
        raise UserError(f"{where}: no pair of train has text on both sides")
    if budget is not None and budget < len(full):
        full = np.sort(np.random.default_rng(seed).permutation(full)[:budget])
    corpus["train"] = train.select(full) if len(full) < len(train) else train
    return corpus


def tokenize_tasks(
    texts: Texts, data: TasksSection, tokenizer: PreTrainedTokenizerBase, seed: int,
    tokenize: Callable[..., Dataset] = tokenize_pairs,
) -> dict[str, dict[str, Dataset]]:  # fmt: skip
    """split -> task -> rows of token ids, in the order of the texts. tokenize: takes what `tokenize_pairs` takes."""
    rows: dict[str, dict[str, Dataset]] = {}
    for name, corpus in texts.items():
        for split, dataset in corpus.items():
            rows.setdefault(split, {})[name] = tokenize(
                dataset, tokenizer, max_source_length=data.max_source_length,
                max_target_length=data.max_target_length, prefix=data.tasks[name].prefix, num_proc=data.num_proc,
                where=f"{name} {split}",
            )  # fmt: skip
    return rows


def mix(rows: dict[str, Dataset], tasks: dict[str, TaskSection], seed: int) -> Dataset:
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


def answers(
    accelerator: Accelerator, model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset,
    generation: GenerationSection, *, num_beams: int = 1, progress: str | None = None,
) -> list[str]:  # fmt: skip
    """What the model writes for every row, in order and the same on every process. progress: names a bar; this is the
    end of a run, and what its model generates is checked.

    Each process writes its part, one token more or less than the others, so a sharded model is made whole for it.
    """
    if progress is not None:
        warn_of_generation(accelerator, model)
    mine = list(range(accelerator.process_index, len(rows), accelerator.num_processes))
    sources = [rows[index]["input_ids"] for index in mine]
    shown = progress is not None and accelerator.is_main_process
    bar = tqdm(total=len(mine), desc=progress, unit="text", dynamic_ncols=True, disable=not shown)
    with bar, whole(accelerator, model) as bare:
        ids = decode(
            bare, sources, max_new_tokens=generation.max_new_tokens, num_beams=num_beams,
            tokens_per_batch=TOKENS_PER_BATCH, length_penalty=generation.length_penalty if num_beams > 1 else None,
            progress=bar.update,
        )  # fmt: skip
    written = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    every = dict(gather_object(list(zip(mine, written, strict=True))))
    return [every[index] for index in range(len(rows))]


def score(generation: GenerationSection, hypotheses: list[str], references: list[str]) -> dict[str, float]:
    """The metrics of the kind that was asked for; the first is the main one."""
    found = compute_text_metrics(generation.metric, hypotheses, references)
    return {name: found[name] for name in TEXT_METRICS[generation.metric]}


def learnt_by_default(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TasksSection, generation: GenerationSection
) -> None:
    """Have the checkpoint do by default what it was taught here: how much it reads, behind which prefix, how it writes.

    More of a source than `max_source_length` was never read: `model_max_length` of the tokenizer.
    """
    tokenizer.model_max_length = data.max_source_length
    model.config.task_specific_params = {name: {"prefix": task.prefix} for name, task in data.tasks.items()}
    how = generation.model_dump(include={"num_beams", "max_new_tokens", "length_penalty"})
    model.generation_config.update(**how)  # type: ignore[union-attr]


def write_outputs(output: Path, texts: Texts, split: str, hypotheses: dict[str, list[str]]) -> None:
    """outputs.parquet: task, source, reference and hypothesis side by side, in the order of the data."""
    tables = [
        pd.DataFrame({"task": name, "source": pair["source"][:], "reference": pair["target"][:], "hypothesis": written})
        for name, written in hypotheses.items()
        for pair in [texts[name][split]]
    ]
    pd.concat(tables, ignore_index=True).to_parquet(output / "outputs.parquet", index=False)
