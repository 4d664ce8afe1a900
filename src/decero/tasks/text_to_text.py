"""Tasks of pairs of texts: read from anywhere, told apart by a prefix, mixed by weight, scored on what is written.

Translation, summaries and most else can be put this way: Raffel et al. 2020, section 2.4.
"""

from abc import abstractmethod
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.config.finetuning import GenerationSection
from decero.config.sections import ModelSection
from decero.data.languages import Direction, find_direction
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics
from decero.evaluation.groups import FOUND, group_lines, grouped_metrics
from decero.evaluation.scripts import SAMPLE
from decero.evaluation.text_metrics import (
    TEXT_METRICS,
    answer_examples,
    compute_text_metrics,
    sufficient_statistics,
    text_signatures,
    tokenizer_for_bleu,
)
from decero.tasks.answering import answers, check_answering, written_config
from decero.tasks.base import Corpus, Scores, Task, TaskData, cut_note
from decero.tasks.pair_texts import load_pairs, mix
from decero.training.evaluation import mean_loss
from decero.training.runs import Run


class TextToText(Task):
    """What `Seq2Seq` and `Completion` share: data, evaluation by writing, scores."""

    generates = True
    baselines = ("copy", "lead")
    budget_unit = "pairs"
    scored_on = "test"
    length_settings = "data.max_source_length or data.max_target_length"

    def read_corpus(self, strict: bool = True) -> Corpus:
        splits: dict[str, dict[str, Dataset]] = {}
        notes: list[str] = []
        train = not self.config.eval_only
        for name, corpus in load_pairs(self.config.data, self.config.seed, notes.append, train).items():
            for split, dataset in corpus.items():
                splits.setdefault(split, {})[name] = dataset
        answered = self.config.generation.validation_rows
        for name, rows in splits.get("validation", {}).items() if answered else ():
            notes += cut_note(
                f"{name}: answers in evaluations, of validation", answered, len(rows), "generation.validation_rows"
            )
        return Corpus(splits, ("source", "target"), notes=tuple(notes))

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data, rows = self.config.data, {}
        for name, dataset in parts.items():
            direction = self.direction(name)
            direction.apply(self.tokenizer)
            rows[name] = self.tokenize_part(
                name, dataset, self.tokenizer, max_source_length=data.max_source_length,
                max_target_length=data.max_target_length, prefix=self.prefix_of(name), num_proc=data.num_proc,
                where=f"{name} {split}",
            )  # fmt: skip
        return rows

    def direction(self, name: str) -> Direction:
        """The languages of a part. Raises UserError as `find_direction`."""
        task, where = self.config.data.tasks[name], f"tokenizer {self.tokenizer.name_or_path}"
        names = f"data.tasks.{name}.source_lang", f"data.tasks.{name}.target_lang"
        return find_direction(self.tokenizer, task.source_lang, task.target_lang, names, where)

    def prefix_of(self, name: str) -> str:
        """What stands before every source of a part."""
        return self.direction(name).prefix + self.config.data.tasks[name].prefix

    @abstractmethod
    def tokenize_part(
        self, part: str, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **settings: Any
    ) -> Dataset:
        """Rows of `input_ids`, `labels` and `truncated`."""

    def load_data(self, run: Run, splits: tuple[str, ...] | None = None) -> TaskData:
        """As `Task`, and check and state BLEU's tokenizer, where it follows from the script of the references.

        Raises UserError where some task would not be scored.
        """
        data = super().load_data(run, splits)
        if splits is None:
            scored = data.held_out[data.scored_split]
            if lacking := [name for name in self.config.data.tasks if name not in scored]:
                raise UserError(
                    f"data.tasks.{lacking[0]}: it has no {data.scored_split} split, and other tasks have one, so it "
                    f"would not be scored; give data.tasks.{lacking[0]}.{data.scored_split}_fraction"
                )
        if self.config.generation.metric == "translation":
            for part in data.held_out[data.scored_split]:
                found = self._tokenizer_for_bleu(data.scored_split, part)
                if self.config.generation.tokenize == "auto" and found != "13a":
                    run.print(
                        f"data.tasks.{part}: its targets are in a script without spaces, so BLEU uses the tokenizer "
                        f"{found}; generation.tokenize sets another"
                    )
        return data

    def _tokenizer_for_bleu(self, split: str, part: str) -> str:
        return tokenizer_for_bleu(self.config.generation.tokenize, self.corpus.splits[split][part]["target"][:SAMPLE])

    def mix(self, rows: dict[str, Any]) -> Dataset:
        return mix(rows, self.config.data.tasks, self.config.seed)

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """`loss`, and the metrics of answers to the first `validation_rows` of each part, averaged over parts.

        Of a part of the validation rows, the same part of the answers: the forecast asks for that.
        """
        metrics = super().evaluate(run, model, rows, data)
        generation, everything = self.config.generation, len(data.validation or ())
        if not generation.validation_rows:
            return metrics
        found = []
        for name, part in data.held_out["validation"].items():
            answered = min(generation.validation_rows, len(part))
            answered = -(-answered * len(rows) // everything)
            found.append(self._write(run, model, name, part.select(range(answered)), "validation")[1])
        names = dict.fromkeys(metric for each in found for metric in each)  # a part may have one of its own
        return metrics | {name: fmean(each[name] for each in found if name in each) for name in names}

    def _write(
        self, run: Run, model: nn.Module, part: str, rows: Dataset, split: str, **settings: Any
    ) -> tuple[list[str], dict[str, float]]:
        """The answers to the first rows of a part, and their metrics."""
        generation, texts = self.config.generation, self.corpus.splits[split][part]
        how = settings | {"settings": self.direction(part).start}
        written = answers(run.accelerator, model, self.tokenizer, rows, generation, **how)
        found = score(generation, written, texts["target"][: len(rows)])
        if "answer" in texts.column_names:
            wanted = map(str, texts["answer"][: len(rows)])
            found[FOUND] = float(answer_examples(written, list(wanted)).mean())
        return written, found

    def _grouped(self, split: str, part: str, written: list[str]) -> dict[str, dict[str, Any]]:
        """The metrics of a part for each value of its `group_column`."""
        texts, generation = self.corpus.splits[split][part], self.config.generation
        answer = [str(each) for each in texts["answer"][:]] if "answer" in texts.column_names else None
        return grouped_metrics(
            generation.metric, written, texts["target"][:], texts["group"][:], answer, generation.tokenize
        )

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        generation, split = self.config.generation, data.scored_split
        size, objective = run.training.per_device_eval_batch_size, self.reported_objective(model)
        parts, tasks = data.held_out[split], list(self.config.data.tasks)
        metric: dict[str, float] = {}
        hypotheses: dict[str, list[str]] = {}
        for name, rows in parts.items():
            how = {"num_beams": generation.num_beams, "progress": f"{name} {split}" if run.progress else None}
            hypotheses[name], found = self._write(run, model, name, rows, split, **how)
            found["loss"] = mean_loss(run.accelerator, model, rows, objective, size)["loss"]
            metric |= {f"{name}_{key}" if len(tasks) > 1 else key: value for key, value in found.items()}
        if run.is_main:
            write_outputs(run.output, self.corpus.splits[split], hypotheses)
        trained = "train" in self.corpus.splits
        facts: dict[str, Any] = {"train_examples": len(data.train)} if trained else {}  # type: ignore[arg-type]
        facts["split"] = split
        columns = {name: task.group_column for name, task in self.config.data.tasks.items() if task.group_column}
        if columns:
            facts["groups"] = {
                f"{name} by {column}": self._grouped(split, name, hypotheses[name]) for name, column in columns.items()
            }
            run.print(*group_lines(facts["groups"]))
        return Scores(metric, facts | {"signatures": self._signatures(split, list(parts)), "tasks": tasks})

    def _signatures(self, split: str, parts: list[str]) -> dict[str, str]:
        """metric -> signature; `part_metric` -> signature where the parts differ in BLEU's tokenizer."""
        kind = self.config.generation.metric
        found = {part: text_signatures(kind, self._tokenizer_for_bleu(split, part)) for part in parts}
        if len(set(map(str, found.values()))) == 1:
            return found[parts[0]]
        return {f"{part}_{name}": text for part, each in found.items() for name, text in each.items()}

    @property
    def metrics(self) -> tuple[str, ...]:
        names, parts = TEXT_METRICS[self.config.generation.metric], self.config.data.tasks
        return tuple(f"{part}_{name}" if len(parts) > 1 else name for part in parts for name in names)

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "outputs.parquet")
        if len(self.config.data.tasks) > 1:
            part, metric = self._part_of(metric)
            table = table[table["task"] == part]
        texts = list(table["hypothesis"]), list(table["reference"])
        return ExampleStatistics(*sufficient_statistics(metric, *texts, self.config.generation.tokenize))

    def validation_metric(self, metric: str) -> str:
        """Evaluations average a metric over the parts; without `generation.validation_rows` they know only the loss."""
        if not self.config.generation.validation_rows:
            return "loss"
        return self._part_of(metric)[1] if len(self.config.data.tasks) > 1 else metric

    def _part_of(self, metric: str) -> tuple[str, str]:
        """`help_bleu` -> part `help`, metric `bleu`."""
        names = TEXT_METRICS[self.config.generation.metric]
        return next((part, name) for part in self.config.data.tasks for name in names if metric == f"{part}_{name}")

    def build_model(self, section: ModelSection | None = None) -> PreTrainedModel:
        """As `Task`, and check that the model can write answers as `generation` says, which happens after training."""
        model = super().build_model(section)
        if model.device.type != "meta":  # built only to be measured
            tries = [self.tokenizer(text)["input_ids"] or [0] for text in ("a", "a a a")]
            start = self.direction(next(iter(self.config.data.tasks))).start
            check_answering(model, self.config.generation, self.config.data.max_source_length, tries, start)
        return model

    def prepare_to_save(self, model: Any) -> None:
        model.generation_config = written_config(model, self.config.generation)


def score(generation: GenerationSection, hypotheses: list[str], references: list[str]) -> dict[str, float]:
    """The metrics of the kind that was asked for; the first is the main one."""
    found = compute_text_metrics(generation.metric, hypotheses, references, generation.tokenize)
    return {name: found[name] for name in TEXT_METRICS[generation.metric]}


def write_outputs(output: Path, parts: dict[str, Dataset], hypotheses: dict[str, list[str]]) -> None:
    """outputs.parquet: task, source, reference and hypothesis side by side, in the order of the data."""
    tables = [
        pd.DataFrame({"task": name, "source": pair["source"][:], "reference": pair["target"][:], "hypothesis": written})
        for name, written in hypotheses.items()
        for pair in [parts[name]]
    ]
    pd.concat(tables, ignore_index=True).to_parquet(output / "outputs.parquet", index=False)
