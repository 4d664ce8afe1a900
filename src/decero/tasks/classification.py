"""Classification of texts, with one label or several, and regression: any encoder or decoder with such a head."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from decero.config.finetuning import FinetuneClassification
from decero.config.sections import ModelSection
from decero.data.class_weights import class_weights
from decero.data.collators import ClassificationCollator
from decero.data.corpus import load_corpus, source_rows, train_examples, without_train
from decero.data.folds import one_fold
from decero.data.labels import encode_labels, in_known_order, label_draw
from decero.data.special_tokens import pad_with
from decero.data.text_files import read_files
from decero.data.tokenization import tokenize_examples
from decero.data.unlabelled import joined, keep_out, without_labels
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics
from decero.evaluation.metrics import MAIN_METRIC, METRICS, compute_metrics, predict
from decero.evaluation.per_class import per_class
from decero.evaluation.threshold import choose_threshold
from decero.execution.build import tokenizer_for
from decero.execution.classification_head import checkpoint_config, label_fields, label_names, pad_as, redraw_head
from decero.execution.distillation import TEACHER_COLUMNS, distilled
from decero.execution.objective import Objective, classification
from decero.execution.unwrap import unwrap
from decero.inference.text_classification import threshold_of
from decero.tasks.base import Corpus, Scores, Task, TaskData, cut_note
from decero.tasks.label_predictions import (
    check_same_labels,
    check_threshold,
    label_scores_of,
    label_statistics,
    write_predictions,
)
from decero.tasks.teacher import taught_rows
from decero.training.evaluation import mean_loss, predict_logits
from decero.training.runs import Run

UNLABELLED = "objective.distill.unlabelled_files"
RESERVED = ("index", "row", "label", "prediction", "label_name", "prediction_name", "probabilities", "logits")


class Classification(Task):
    recipe, Config = "finetune_classification", FinetuneClassification
    command = "classify"
    auto_class = AutoModelForSequenceClassification
    tokenizer_needs = ("pad_token",)  # or another token to pad with, see `load_tokenizer`
    needs_offsets = False
    baselines = ("tfidf",)
    budget_unit = "labels"
    scored_on = "test"
    has_folds = True

    def __init__(self, config: FinetuneClassification):
        super().__init__(config)
        wanted = config.objective.threshold
        self.threshold = 0.5 if wanted == "validation" else wanted  # the chosen one after `calibrate`

    @property
    def problem_type(self) -> str:
        """`single_label_classification`, `multi_label_classification` or `regression`."""
        return self.config.objective.problem_type

    @cached_property
    def checkpoint(self) -> Any:
        """The configuration of the checkpoint to start from; None for random weights."""
        return checkpoint_config(self.config.model)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer. One without a padding token pads with the checkpoint's, or with its end token."""
        tokenizer = tokenizer_for(self.config.tokenizer, self.config.model, needs=(), fast=self.needs_offsets)
        pad_with(tokenizer, None if self.checkpoint is None else self.checkpoint.get_text_config().pad_token_id)
        return tokenizer

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The texts with `labels`, train cut to the label budget. Labels keep the ids that the checkpoint has."""
        data, problem_type = self.config.data, self.problem_type
        notes: list[str] = []
        alone = self.config.eval_only and data.fold is None  # then train is not read
        how = {"say": notes.append, "needs_train": not alone} | ({} if strict else {"columns": None})
        corpus = load_corpus(**data.source() | how)
        # Where labels that train lacks raise no error, only train is encoded.
        labelled = corpus if strict else DatasetDict(train=corpus["train"])
        known = label_names(self.checkpoint) if problem_type != "regression" else []
        encoded, names = encode_labels(labelled, data.label_column, problem_type, known=known, say=notes.append)
        corpus = encoded if strict else DatasetDict(corpus | {"train": encoded["train"]})
        if data.fold:
            single, train = problem_type == "single_label_classification", corpus["train"]
            notes += ["data.fold: the test split is left out, because a fold of train is tested"] * ("test" in corpus)
            corpus = one_fold(
                corpus, data.text_column, data.fold.number, data.fold.of, data.fold.seed, data.validation_fraction,
                train["labels"] if single else None,
            )  # fmt: skip
        if self.config.objective.threshold != 0.5 and strict:
            check_threshold(self.config.objective.threshold, problem_type, names, tuple(corpus))
        if self.config.eval_only:  # of folds, train was needed until here
            corpus = DatasetDict(without_train(corpus))
            check_same_labels(str(self.config.model.name_or_path), known, names)
        rest = None
        if "train" in corpus:
            total = len(corpus["train"])
            corpus["train"], rest = label_draw(corpus["train"], data.max_train_rows, problem_type, self.config.seed)
            notes += cut_note("train", len(corpus["train"]), total, "data.max_train_rows")
        if known:
            notes.append(f"{self.config.model.name_or_path}: {self._head_line(names, known)}")
        columns = (data.text_column, *([data.text_pair_column] if data.text_pair_column else []))
        unlabelled = self._unlabelled(rest, corpus, columns, notes) if strict else None
        splits = {split: {"": texts} for split, texts in corpus.items()}
        return Corpus(splits, columns, tuple(names), tuple(notes), unlabelled)

    def _unlabelled(
        self, rest: Dataset | None, corpus: DatasetDict, columns: tuple, notes: list[str]
    ) -> Dataset | None:
        """The texts that only the teacher labels, without those of validation and test; None for none."""
        settings, data = self.distill, self.config.data
        parts = [rest] if rest is not None and settings and settings.unlabelled_rest else []
        if settings and settings.unlabelled_files:
            wanted = dict.fromkeys(columns, "data.text_column")
            try:
                parts.append(
                    read_files("train", settings.unlabelled_files, data.sample_by, wanted, False, setting=UNLABELLED)
                )
            except UserError as error:
                named = UNLABELLED in str(error)
                raise UserError(str(error) if named else f"{UNLABELLED}: {error}") from None
        parts = [without_labels(part, corpus["train"], columns) for part in parts if len(part)]
        if not parts:
            return None
        texts = joined(parts, (*columns, "labels"))
        kept = keep_out(texts, [corpus[split] for split in corpus if split != "train"], columns)
        notes += cut_note("texts without labels", len(kept), len(texts), "the others stand in validation or test")
        return kept

    def _head_line(self, names: list[str], known: list[str]) -> str:
        if in_known_order(names, known) is None:
            why = f"it has {', '.join(known[:20])}; train has {', '.join(names[:20])}"
            return f"the classification head is new, because its labels are others ({why})"
        return f"the classification head is kept, and its labels keep their ids: {', '.join(names[:20])}"

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_examples(
            parts[""], self.tokenizer, max_length=data.max_length, text_column=data.text_column,
            text_pair_column=data.text_pair_column, num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    def model_fields(self) -> dict[str, Any]:
        return label_fields(self.corpus.label_names) | {"problem_type": self.problem_type}

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The model with a head for the labels; a checkpoint's head for other labels is drawn anew."""
        model = super().initial_model(section)
        known, names = label_names(self.checkpoint), self.corpus.label_names
        if self.problem_type != "regression" and known and in_known_order(names, known) is None:
            redraw_head(model, self.config.seed)
        pad_as(model, self.tokenizer)
        return model

    def prepare_to_save(self, model: Any) -> None:
        """Record whether texts were read as pairs, and a threshold other than 0.5, for `decero classify`."""
        model.config.reads_pairs = self.config.data.text_pair_column is not None
        if self.threshold != 0.5 or hasattr(model.config, "decision_threshold"):
            model.config.decision_threshold = None if self.threshold == 0.5 else self.threshold

    def load_data(self, run: Run, splits: tuple[str, ...] | None = None) -> TaskData:
        """The rows of a run; with a teacher, its labels stand beside those of train."""
        data = super().load_data(run, splits)
        if self.distill:
            data.train = taught_rows(self, run, data.train)  # type: ignore[arg-type]
        return data

    def plain_objective(self, model: nn.Module, tokenizer: Any) -> Objective:
        """The objective without a teacher and class weights, for any classifier and its tokenizer."""
        # A model without segments cannot read the tokenizer's segment ids.
        segments = getattr(unwrap(model).config, "type_vocab_size", 2) >= 2
        left_out = () if segments else ("token_type_ids",)
        return classification(ClassificationCollator(tokenizer, left_out), self.problem_type)

    def objective(self, model: nn.Module) -> Objective:
        plain, distill = self.plain_objective(model, self.tokenizer), self.distill
        if not distill:
            return classification(plain.collate, self.problem_type, self._weights())
        plain = replace(plain, collate=replace(plain.collate, more=TEACHER_COLUMNS))  # type: ignore[type-var]
        return distilled(plain, self.problem_type, distill.alpha, distill.heat)

    def _weights(self) -> np.ndarray | None:
        """The weight of each label in the training loss; None for `class_weights: none`."""
        choice, corpus = self.config.objective.class_weights, self.corpus
        if choice == "none" or self.config.eval_only:
            return None
        return class_weights(choice, corpus.splits["train"][""]["labels"][:], corpus.label_names, self.problem_type)

    def reported_objective(self, model: nn.Module) -> Objective:
        """The loss without a teacher and class weights. Packed rows serve evaluations, too."""
        trained, plain = self.training_objective or self.objective(model), self.plain_objective(model, self.tokenizer)
        if not trained.packed:
            return plain
        packed = replace(trained.collate, collate=plain.collate, per_text=plain.per_text)  # type: ignore[type-var]
        return replace(plain, collate=packed)

    def _predict(self, run: Run, model: nn.Module, rows: Dataset) -> tuple[dict[str, float], np.ndarray]:
        """The metrics of some rows, and their logits."""
        size = run.training.per_device_eval_batch_size
        logits = predict_logits(run.accelerator, model, rows, self.reported_objective(model), size)
        predictions = predict(self.problem_type, logits, self.threshold)
        return compute_metrics(self.problem_type, predictions, np.asarray(rows["labels"])), logits

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        size = run.training.per_device_eval_batch_size
        loss = mean_loss(run.accelerator, model, rows, self.reported_objective(model), size)["loss"]
        return self._predict(run, model, rows)[0] | {"loss": loss}

    def calibrate(self, run: Run, model: nn.Module, data: TaskData) -> None:
        """Choose the threshold on validation, if asked. `--eval-only` takes the saved one, unless one is given."""
        if run.eval_only and "threshold" not in self.config.objective.model_fields_set:
            self.threshold = threshold_of(unwrap(model).config)
        if self.config.objective.threshold == "validation":
            assert data.validation is not None  # `check_threshold`
            self.threshold = choose_threshold(
                self.problem_type, self._predict(run, model, data.validation)[1], data.validation["labels"]
            )

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        rows = data.held_out[split][""]
        names = list(self.corpus.label_names)
        metric, logits = self._predict(run, model, rows)
        predictions = predict(self.problem_type, logits, self.threshold)
        if run.is_main:
            texts = self.corpus.splits[split][""]
            columns = {"row": list(source_rows(texts))}
            columns |= {f"text of {name}" if name in RESERVED else name: texts[name][:] for name in self.corpus.columns}
            labels = np.asarray(rows["labels"])
            write_predictions(run.output, self.problem_type, columns, labels, logits, predictions, names)
        facts: dict[str, Any] = {"label_names": names} | train_examples(self.corpus.splits)
        facts |= {"threshold": self.threshold} if self.remark else {}
        facts |= {"teacher": self.teacher_record} if self.teacher_record else {}
        facts |= per_class(self.problem_type, predictions, rows["labels"], names)
        return Scores(metric, facts | {"main_metric": MAIN_METRIC[self.problem_type], "split": split})

    @property
    def remark(self) -> str:
        chosen = ", chosen on validation" if self.config.objective.threshold == "validation" else ""
        return f" (threshold {self.threshold}{chosen})" if chosen or self.threshold != 0.5 else ""

    @property
    def metrics(self) -> tuple[str, ...]:
        main = MAIN_METRIC[self.problem_type]
        return main, *(name for name in METRICS[self.problem_type] if name != main)

    def label_scores(self, folder: Path) -> dict[str, Any]:
        return label_scores_of(folder, self.problem_type, self.corpus.label_names)

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        return label_statistics(folder, self.problem_type, metric, self.corpus.label_names)

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._predict(run, model, rows)
