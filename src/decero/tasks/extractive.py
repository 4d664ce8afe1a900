"""Extractive summaries: an encoder scores every sentence of a document, and the best are the summary (BERTSum).

Source: Liu & Lapata 2019, section 3.1, with one linear layer over the marks of the sentences.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedModel

from decero.config.finetune_summaries import FinetuneExtractiveSummaries
from decero.config.sections import ModelSection
from decero.data.collators import IGNORED
from decero.data.columns import rows_with_text
from decero.data.corpus import check_text, load_corpus, train_examples
from decero.data.sentences import choose_sentences, mark_sentences, sentences_of
from decero.data.tokenization import map_rows
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics
from decero.evaluation.oracle import greedy_oracle
from decero.evaluation.text_metrics import TEXT_METRICS, sufficient_statistics, summary_metrics, summary_signatures
from decero.execution.classification_head import label_fields
from decero.execution.objective import Objective
from decero.execution.transformers_internals import takes_cache
from decero.execution.word_objective import token_classification, word_collator
from decero.tasks.base import Corpus, Scores, Task, TaskData, cut_note
from decero.training.evaluation import mean_loss, predict_tokens
from decero.training.runs import Run

LABELS = ("leave", "take")  # of a sentence
CEILING_ROWS = 1000  # that the first lines of a run are measured on
FEATURES = Features(
    {
        "input_ids": List(Value("int32")), "labels": List(Value("int64")), "truncated": Value("bool"),
        "oracle": List(Value("int64")), "sentences": List(Value("string")), "summary": Value("string"),
    }
)  # fmt: skip


class ExtractiveSummaries(Task):
    recipe, Config = "finetune_extractive_summaries", FinetuneExtractiveSummaries
    command = "summarize"
    auto_class = AutoModelForTokenClassification
    tokenizer_needs = ("pad_token",)
    needs_offsets = False
    budget_unit = "pairs"
    scored_on = "test"
    metrics = TEXT_METRICS["summarization"]  # type: ignore[assignment]

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The documents and their summaries, train cut to the label budget and without empty texts."""
        data, notes = self.config.data, list[str]()
        columns = (data.text_column, data.summary_column)
        corpus = load_corpus(**data.source(), needs_train=not self.config.eval_only)
        for split, dataset in corpus.items():
            check_text(dataset, data.summary_column, split, "data.summary_column")
            corpus[split] = dataset.select_columns(list(columns))
        if "train" in corpus:
            corpus["train"] = self._training_rows(corpus["train"], columns, notes)
        return Corpus({split: {"": texts} for split, texts in corpus.items()}, columns, LABELS, tuple(notes))

    def _training_rows(self, train: Dataset, columns: tuple[str, str], notes: list[str]) -> Dataset:
        full, budget = rows_with_text(train, columns), self.config.data.max_train_rows
        if not len(full):
            raise UserError(
                "train: no row has a document and a summary; check data.text_column and data.summary_column"
            )
        if budget is not None and budget < len(full):
            notes += cut_note("train", budget, len(full), "data.max_train_rows")
            full = np.sort(np.random.default_rng(self.config.seed).permutation(full)[:budget])
        return train.select(full)

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        """A row a document: its tokens, and at the mark of each sentence whether the oracle chooses it."""
        data, most, tokenizer = self.config.data, self.config.objective.num_sentences, self.tokenizer
        text_column, summary_column, max_length = data.text_column, data.summary_column, data.max_length

        def label(batch: dict[str, list]) -> dict[str, list]:
            rows: dict[str, list] = {name: [] for name in FEATURES}
            for text, summary in zip(batch[text_column], batch[summary_column], strict=True):
                sentences = sentences_of(text or "")
                chosen = greedy_oracle(sentences, summary or "", most)
                ids, places, cut = mark_sentences(tokenizer, sentences, max_length)
                labels = np.full(len(ids), IGNORED)
                labels[places] = np.isin(np.arange(len(places)), chosen)
                row = ids, labels, cut, chosen, sentences, summary or ""
                for name, value in zip(FEATURES, row, strict=True):
                    rows[name].append(value)
            return rows

        key = ("extractive", text_column, summary_column, max_length, most)
        return {"": map_rows(parts[""], label, FEATURES, tokenizer, key, data.num_proc, f"label {split}")}

    def load_data(self, run: Run, splits: tuple[str, ...] | None = None) -> TaskData:
        """The rows of a run. Prints what sentences can reach, before training.

        Raises UserError where even the oracle does not beat the first words.
        """
        data = super().load_data(run, splits)
        if self.config.eval_only:  # the scores say what sentences can reach
            return data
        part, rows = ("validation", data.validation) if data.validation is not None else ("train", data.train)
        found = self.ceiling(rows.select(range(min(len(rows), CEILING_ROWS))))  # type: ignore[union-attr,arg-type]
        oracle, sentences, words = (f"{name} {_shown(scores)}" for name, scores in found.items())
        if run.progress:
            most = f"{oracle}, about the most that sentences reach"
            run.print(f"ROUGE-1/2/L on {part} without a model: {most}; {sentences}; {words}")
        best, _, least = (scores["rouge1"] for scores in found.values())
        if best <= least:
            raise UserError(
                f"data: no choice of sentences beats the first words of the documents: on {part} {oracle}, {words} "
                "(ROUGE-1/2/L); these summaries must be written: use recipes/finetune_seq2seq.py"
            )
        return data

    def ceiling(self, rows: Dataset) -> dict[str, dict[str, float]]:
        """The metrics of summaries without a model: the oracle, the first sentences, the first words.

        The first words are as many as the median summary of train has; without train, that of `rows`.
        """
        summaries, documents = rows["summary"][:], rows["sentences"][:]
        most = self.config.objective.num_sentences
        train = self.corpus.splits.get("train")
        usual = train[""][self.config.data.summary_column] if train else summaries
        size = max(1, int(np.median([len(summary.split()) for summary in usual])))
        count = f"{most} sentence{'s' * (most > 1)}"
        chosen = zip(documents, rows["oracle"], strict=True)
        texts = {
            f"the oracle ({count})": ["\n".join(text[i] for i in own) for text, own in chosen],
            f"the first {count}": ["\n".join(text[:most]) for text in documents],
            f"the first {size} words": [" ".join(" ".join(text).split()[:size]) for text in documents],
        }
        return {name: summary_metrics(written, summaries) for name, written in texts.items()}

    # --- model and objective

    def model_fields(self) -> dict[str, Any]:
        return label_fields(LABELS)

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        model = super().initial_model(section)
        if takes_cache(inspect.signature(model.forward).parameters) or getattr(model.config, "is_decoder", False):
            raise UserError(f"model: {model.config.model_type} reads from left to right; choose an encoder")
        if self.config.eval_only and not getattr(model.config, "extractive", None):
            raise UserError(f"--eval-only: {section.name_or_path} was not trained to choose sentences; train it first")
        return model

    def prepare_to_save(self, model: Any) -> None:
        """Record how sentences were read and chosen."""
        model.config.extractive = self.config.objective.model_dump() | {"max_length": self.max_length}

    def objective(self, model: nn.Module) -> Objective:
        return token_classification(word_collator(model, self.tokenizer))

    def reported_objective(self, model: nn.Module) -> Objective:
        return self.training_objective or self.objective(model)  # packed rows serve evaluations, too

    # --- evaluation

    def choices(self, run: Run, model: nn.Module, rows: Dataset) -> list[list[int]]:
        """The numbers of the chosen sentences of each row."""
        settings, size = self.config.objective, run.training.per_device_eval_batch_size
        logits_N2 = predict_tokens(run.accelerator, model, rows, self.reported_objective(model), size)
        marked = [int((np.asarray(labels) != IGNORED).sum()) for labels in rows["labels"]]
        scores = np.split(logits_N2[:, 1] - logits_N2[:, 0], np.cumsum(marked)[:-1])
        return [
            choose_sentences(sentences, own.tolist(), settings.num_sentences, settings.trigram_blocking)
            for sentences, own in zip(rows["sentences"], scores, strict=True)
        ]

    def summaries(self, rows: Dataset, choices: list[list[int]]) -> list[str]:
        """The chosen sentences of each row, one a line."""
        return ["\n".join(text[i] for i in own) for text, own in zip(rows["sentences"], choices, strict=True)]

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        size = run.training.per_device_eval_batch_size
        loss = mean_loss(run.accelerator, model, rows, self.reported_objective(model), size)["loss"]
        written = self.summaries(rows, self.choices(run, model, rows))
        return summary_metrics(written, rows["summary"][:]) | {"loss": loss}

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        rows, texts = data.held_out[split][""], self.corpus.splits[split][""]
        choices = self.choices(run, model, rows)
        written, summaries = self.summaries(rows, choices), rows["summary"][:]
        if run.is_main:
            table = {"source": texts[self.config.data.text_column][:], "reference": summaries, "hypothesis": written}
            pd.DataFrame(table | {"sentences": choices, "oracle": rows["oracle"][:]}).to_parquet(
                run.output / "outputs.parquet", index=False
            )
        facts: dict[str, Any] = train_examples(self.corpus.splits)
        facts |= {"split": split, "signatures": summary_signatures(), "without_a_model": self.ceiling(rows)}
        return Scores(summary_metrics(written, summaries), facts)

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self.choices(run, model, rows)

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "outputs.parquet")
        return ExampleStatistics(*sufficient_statistics(metric, list(table["hypothesis"]), list(table["reference"])))


def _shown(scores: dict[str, float]) -> str:
    return " / ".join(f"{scores[name]:.1f}" for name in ("rouge1", "rouge2", "rougeL"))
