"""Classification of pictures: any model of ours or of transformers with such a head."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import AutoModelForImageClassification

from decero.config.finetune_images import FinetuneImageClassification
from decero.data.corpus import source_rows, train_examples
from decero.data.labels import encode_labels
from decero.evaluation.examples import ExampleStatistics
from decero.evaluation.metrics import MAIN_METRIC, METRICS, compute_metrics, predict
from decero.evaluation.per_class import per_class
from decero.execution.image_objective import picture_classes
from decero.execution.objective import Objective
from decero.tasks.base import Corpus, Scores, TaskData
from decero.tasks.label_predictions import check_same_labels, label_scores_of, label_statistics, write_predictions
from decero.tasks.picture_task import PictureTask
from decero.training.evaluation import mean_loss, predict_logits
from decero.training.runs import Run

KIND = "single_label_classification"


class ImageClassification(PictureTask):
    recipe, Config = "finetune_image_classification", FinetuneImageClassification
    command = "classify"
    auto_class = AutoModelForImageClassification
    head = "ForImageClassification"
    baselines = ("logistic", "cnn")

    def usage(self, folder: Path) -> list[str]:
        return [f"decero classify {folder} PICTURE"]

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The pictures with `labels`, train cut to the label budget. Labels keep the ids that the checkpoint has."""
        notes: list[str] = []
        column = self.config.data.label_column
        corpus = self.load_pictures(notes)
        labelled = corpus if strict else DatasetDict(train=corpus["train"])
        encoded, names = encode_labels(labelled, column, KIND, known=self.known, say=notes.append)
        corpus = encoded if strict else DatasetDict(corpus | {"train": encoded["train"]})
        if self.config.eval_only:
            check_same_labels(str(self.config.model.name_or_path), self.known, names)
        elif self.known:
            kept = self.keeps_head(names)
            head = "kept, and its labels keep their ids" if kept else "new, because its labels are others"
            notes.append(f"{self.config.model.name_or_path}: the head is {head}: {', '.join(names[:20])}")
        self.cut_train(corpus, KIND, notes)
        splits = {split: {"": rows} for split, rows in corpus.items()}
        return Corpus(splits, (self.config.data.image_column,), tuple(names), tuple(notes))

    def objective(self, model: nn.Module) -> Objective:
        return picture_classes(self.collator(trains=True), self.config.objective.label_smoothing)

    def reported_objective(self, model: nn.Module) -> Objective:
        return picture_classes(self.collator(trains=False))

    def _predict(self, run: Run, model: nn.Module, rows: Dataset) -> tuple[dict[str, float], np.ndarray]:
        """The metrics of some rows, and their logits."""
        size = run.training.per_device_eval_batch_size
        logits = predict_logits(run.accelerator, model, rows, self.reported_objective(model), size)
        return compute_metrics(KIND, predict(KIND, logits), np.asarray(rows["labels"])), logits

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        size = run.training.per_device_eval_batch_size
        loss = mean_loss(run.accelerator, model, rows, self.reported_objective(model), size)["loss"]
        return self._predict(run, model, rows)[0] | {"loss": loss}

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        rows, names = data.held_out[split][""], list(self.corpus.label_names)
        metric, logits = self._predict(run, model, rows)
        predictions = predict(KIND, logits)
        if run.is_main:
            columns = {"row": list(source_rows(self.corpus.splits[split][""]))}
            write_predictions(run.output, KIND, columns, np.asarray(rows["labels"]), logits, predictions, names)
        facts: dict[str, Any] = {"label_names": names} | train_examples(self.corpus.splits)
        facts |= per_class(KIND, predictions, rows["labels"], names)
        return Scores(metric, facts | {"main_metric": MAIN_METRIC[KIND], "split": split})

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS[KIND]

    def label_scores(self, folder: Path) -> dict[str, Any]:
        return label_scores_of(folder, KIND, self.corpus.label_names)

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        return label_statistics(folder, KIND, metric, self.corpus.label_names)

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._predict(run, model, rows)
