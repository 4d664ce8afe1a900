"""Token classification: entities, slots and parts of speech, with any encoder or decoder that has such a head."""

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import log_softmax
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerFast

from decero.config.finetune_words import FinetuneTokenClassification
from decero.config.sections import ModelSection
from decero.data.corpus import load_corpus, train_examples
from decero.data.labels import in_known_order, label_budget
from decero.data.special_tokens import pad_with
from decero.data.tag_schemes import split_tag, tag_names
from decero.data.tagged_texts import check_labels, read_entities, read_tags
from decero.data.word_rows import WordWindows, tokenize_words
from decero.evaluation.examples import ExampleStatistics
from decero.evaluation.span_f1 import (
    SPAN_METRICS,
    TAG_METRICS,
    by_label,
    count_items,
    span_metrics,
    span_statistics,
)
from decero.execution.build import tokenizer_for
from decero.execution.classification_head import checkpoint_config, label_fields, label_names, pad_as, redraw_head
from decero.execution.objective import Objective
from decero.execution.word_objective import token_classification, word_collator
from decero.inference.extraction import Tagging, answer_of
from decero.tasks.base import Corpus, Scores, Task, TaskData, cut_note
from decero.tasks.label_predictions import check_same_labels, in_columns_of
from decero.training.evaluation import predict_tokens
from decero.training.runs import Run

HEAD = "ForTokenClassification"
Answer = tuple[list[str], list[dict[str, Any]]]  # `answer_of` a text


class TokenClassification(Task):
    recipe, Config = "finetune_token_classification", FinetuneTokenClassification
    command = "extract"
    auto_class = AutoModelForTokenClassification
    tokenizer_needs = ("pad_token",)  # or another token to pad with, see `load_tokenizer`
    baselines = ("lexicon",)
    budget_unit = "texts"
    scored_on = "test"

    @cached_property
    def checkpoint(self) -> Any:
        """The configuration of the checkpoint to start from; None for random weights."""
        return checkpoint_config(self.config.model)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer. One without a padding token pads with the checkpoint's, or with its end token."""
        tokenizer = tokenizer_for(self.config.tokenizer, self.config.model, needs=())
        pad_with(tokenizer, None if self.checkpoint is None else self.checkpoint.get_text_config().pad_token_id)
        return tokenizer

    # --- data

    @cached_property
    def windows(self) -> tuple[int, int | None]:
        """The tokens of a window, and how many two of them share; of a model that is only scored, as it was trained."""
        data, given = self.config.data, self.config.call.given
        name = str(self.config.model.name_or_path)
        saved: Any = (Tagging.recorded(self.checkpoint, name) if self.config.eval_only else None) or data
        length, stride = (data if f"data.{each}" in given else saved for each in ("max_length", "stride"))
        return length.max_length, stride.stride

    @property
    def max_length(self) -> int:
        return self.windows[0]

    @cached_property
    def known(self) -> list[str]:
        """The tags of the checkpoint's head, in its order."""
        return label_names(self.checkpoint, HEAD)

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The texts with words, tags and entities, train cut to the label budget. `label_names` are the tags."""
        data = self.config.data
        notes: list[str] = []
        corpus = load_corpus(**data.source(), needs_train=not self.config.eval_only, number_rows=True)
        if data.entities_column:
            scheme = "BIO" if data.scheme == "auto" else data.scheme
            tagged = read_entities(corpus, data.text_column, data.entities_column, scheme, notes.append)
        else:
            name = str(self.config.model.name_or_path)
            saved = Tagging.recorded(self.checkpoint, name) if self.config.eval_only else None
            usual = saved.scheme if saved else None
            tagged = read_tags(corpus, data.tokens_column, data.tags_column, data.scheme, notes.append, usual)
        if strict:
            check_labels(tagged, data.entities_column or data.tags_column)
        names = tag_names(tagged.labels, tagged.scheme)
        kept = in_known_order(names, self.known)
        if self.config.eval_only:
            check_same_labels(str(self.config.model.name_or_path), self.known, names)
            if self.windows != (data.max_length, data.stride):
                notes.append(f"windows as the model was trained: of {self.max_length} tokens, {self.windows[1]} shared")
        elif self.known:
            head = "kept, and its tags keep their ids" if kept else "new, because its tags are others"
            notes.append(f"{self.config.model.name_or_path}: the head is {head}: {', '.join((kept or names)[:20])}")
        if "train" in tagged.corpus:
            train = label_budget(tagged.corpus["train"], data.max_train_rows, "token_classification", self.config.seed)
            notes += cut_note("train", len(train), len(tagged.corpus["train"]), "data.max_train_rows")
            tagged.corpus["train"] = train
        self.tagged = tagged
        splits = {split: {"": texts} for split, texts in tagged.corpus.items()}
        return Corpus(splits, ("text",), tuple(kept or names), tuple(notes))

    @property
    def scheme(self) -> str:
        """The scheme of the tags: BIO, BIOES or none."""
        _ = self.corpus
        return self.tagged.scheme

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_words(
            parts[""], self.tokenizer, self.corpus.label_names, max_length=self.max_length, stride=self.windows[1],
            num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    # --- model and objective

    def model_fields(self) -> dict[str, Any]:
        return label_fields(self.corpus.label_names)

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The model with a head for the tags; a checkpoint's head for other tags is drawn anew."""
        model = super().initial_model(section)
        if self.known and in_known_order(self.corpus.label_names, self.known) is None:
            redraw_head(model, self.config.seed)
        pad_as(model, self.tokenizer)
        return model

    def prepare_to_save(self, model: Any) -> None:
        """Record how texts become words and windows, and what the tags mean, for `decero extract`."""
        data = self.config.data
        stride = WordWindows(self.tokenizer, data.max_length, data.stride).stride
        words = "text" if data.entities_column else "tokens"
        Tagging(self.scheme, words, data.max_length, stride).write(model.config)
        if hasattr(model.config, "extractive"):  # of the checkpoint that it began with
            model.config.extractive = None

    def objective(self, model: nn.Module) -> Objective:
        return token_classification(word_collator(model, self.tokenizer), self.config.objective.label_smoothing)

    def reported_objective(self, model: nn.Module) -> Objective:
        packed = self.training_objective  # packed rows serve evaluations, too
        return token_classification(packed.collate if packed else word_collator(model, self.tokenizer))

    # --- evaluation

    def _predict(self, run: Run, model: nn.Module, rows: Dataset) -> tuple[np.ndarray, float]:
        """The log-probabilities of the words of some rows, (words, tags), and the mean loss."""
        size = run.training.per_device_eval_batch_size
        logits = predict_tokens(run.accelerator, model, rows, self.reported_objective(model), size)
        log_probability = log_softmax(logits.astype(np.float64), axis=1)
        labels = np.concatenate([np.asarray(row)[np.asarray(row) >= 0] for row in rows["labels"]])
        return log_probability, float(-log_probability[np.arange(len(labels)), labels].mean())

    def answers(self, texts: Dataset, rows: Dataset, log_probability_WC: np.ndarray) -> list[Answer]:
        """The tags and entities of each text. A text without rows has none.

        rows: of `tokenize`, all or some. log_probability_WC: of their scored words, in order.
        """
        example_W = np.repeat(rows["example"], list(map(len, rows["words"])))
        word_W = np.concatenate(rows["words"])
        order = np.lexsort((word_W, example_W))
        ends = np.searchsorted(example_W[order], np.arange(len(texts) + 1))
        names, found = self.corpus.label_names, []
        for text, begin, end in zip(texts, ends, ends[1:], strict=False):
            here = order[begin:end]
            bounds = [(text["starts"][word], text["stops"][word]) for word in word_W[here]]
            tags, entities = answer_of(text["text"], bounds, log_probability_WC[here], names, self.scheme)
            found.append((tags, entities if self.scheme != "none" else []))
        return found

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        log_probability, loss = self._predict(run, model, rows)
        texts = self.corpus.splits["validation"][""]
        found = self.answers(texts, rows, log_probability)
        read: Any = range(len(texts))
        if len(rows) < len(data.validation or rows):  # a forecast reads some rows
            read = sorted(set(rows["example"]))
        return self.scores(texts.select(read), [found[i] for i in read])[0] | {"loss": loss}

    def scores(self, texts: Dataset, answers: Sequence[Answer]) -> tuple[dict[str, float], dict[str, Any]]:
        """The metrics of the answers to all texts of a split, and precision, recall and F1 of each label."""
        return scores_of(tag_table(texts, answers), self.scheme)

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        texts, rows = self.corpus.splits[split][""], data.held_out[split][""]
        answers = self.answers(texts, rows, self._predict(run, model, rows)[0])
        metric, labels = self.scores(texts, answers)
        if run.is_main:
            write_answers(run.output, texts, answers)
        facts: dict[str, Any] = {"label_names": list(self.corpus.label_names)} | train_examples(self.corpus.splits)
        return Scores(metric, facts | {"scheme": self.scheme, "by_label": labels, "split": split})

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._predict(run, model, rows)

    # --- comparison

    @property
    def metrics(self) -> tuple[str, ...]:
        return TAG_METRICS if self.scheme == "none" else SPAN_METRICS

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "predictions.parquet")
        if metric in ("accuracy", "word_accuracy"):
            return word_statistics(table)
        # the labels of the task and not of this run: rows of two runs must have the same columns
        learnt = {name if self.scheme == "none" else split_tag(name)[1] for name in self.corpus.label_names} - {""}
        return span_statistics(metric, in_columns_of(sorted(learnt), *counts_of(table, self.scheme)))


def words_of(row: dict[str, Any]) -> list[str]:
    """The words of a row of the corpus."""
    return [row["text"][start:stop] for start, stop in zip(row["starts"], row["stops"], strict=True)]


def tag_table(texts: Dataset, answers: Sequence[Answer]) -> pd.DataFrame:
    """A row a text: its text, the tags of its words, the entities, and what was answered."""
    return pd.DataFrame(
        {
            "text": texts["text"][:], "tags": texts["tags"][:], "prediction": [tags for tags, _ in answers],
            "entities": texts["entities"][:], "predicted_entities": [entities for _, entities in answers],
        }
    )  # fmt: skip


def write_answers(output: Path, texts: Dataset, answers: Sequence[Answer]) -> None:
    """predictions.parquet: `index` and the columns of `tag_table`, a row a text of the scored split, in its order."""
    tag_table(texts, answers).rename_axis("index").reset_index().to_parquet(output / "predictions.parquet", index=False)


def counts_of(table: pd.DataFrame, scheme: str, learnt: Collection[str] = ()) -> tuple[np.ndarray, list[str]]:
    """What each text adds to the counts of right, said and true items, (texts, 3, labels), and the labels.

    An item is an entity; a word, for scheme `none`. learnt: labels that have a place even if the table lacks them.
    """

    def items(column: str) -> list[list[tuple[Any, str]]]:
        if scheme == "none":
            return [list(enumerate(row)) for row in table[column]]
        return [[((each["start"], each["end"]), each["label"]) for each in row] for row in table[column]]

    said, true = map(items, ("prediction", "tags") if scheme == "none" else ("predicted_entities", "entities"))
    labels = sorted({label for rows in (said, true) for row in rows for _, label in row}.union(learnt))
    return count_items(said, true, labels), labels


def word_statistics(table: pd.DataFrame) -> ExampleStatistics:
    """Right words and words of each text."""
    right = [sum(map(str.__eq__, said, true)) for said, true in zip(table["prediction"], table["tags"], strict=True)]
    counts = np.stack([right, [len(row) for row in table["tags"]]], axis=1).astype(np.float64)
    return ExampleStatistics(counts, _share)


def scores_of(table: pd.DataFrame, scheme: str) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of a table, the main one first, and the figures of each label."""
    counts, labels = counts_of(table, scheme)
    rows, share = word_statistics(table)
    words, spans = share(rows.sum(axis=0)), span_metrics(counts)
    if scheme == "none":
        return {"accuracy": words, "f1_macro": spans["f1_macro"]}, by_label(counts, labels)
    return spans | {"word_accuracy": words}, by_label(counts, labels)


def _share(sum_2: np.ndarray) -> float:
    return float(sum_2[0] / sum_2[1]) if sum_2[1] else 0.0
