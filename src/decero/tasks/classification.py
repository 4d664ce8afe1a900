"""Classification of texts, with one label or several, and regression: any encoder or decoder with such a head."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import AutoModelForSequenceClassification

from decero.config.finetuning import FinetuneClassification
from decero.config.sections import LabelledData
from decero.data.collators import ClassificationCollator
from decero.data.corpus import load_corpus
from decero.data.labels import encode_labels, label_budget
from decero.data.tokenization import tokenize_examples
from decero.evaluation.examples import ExampleStatistics, class_statistics
from decero.evaluation.metrics import MAIN_METRIC, METRICS, compute_metrics, predict
from decero.execution.objective import Objective, classification
from decero.execution.unwrap import unwrap
from decero.tasks.base import Corpus, Scores, Task, TaskData
from decero.training.evaluation import mean_loss, predict_logits
from decero.training.records import read_record
from decero.training.runs import Run


def load_labelled(data: LabelledData, problem_type: str, seed: int) -> tuple[DatasetDict, list[str]]:
    """The corpus with encoded `labels`, train cut to the label budget; and the label names."""
    corpus, names = encode_labels(load_corpus(**data.source()), data.label_column, problem_type)
    train = label_budget(corpus["train"], data.max_train_rows, problem_type, seed)
    return DatasetDict(corpus | {"train": train}), names


class Classification(Task):
    recipe, Config = "finetune_classification", FinetuneClassification
    auto_class = AutoModelForSequenceClassification
    tokenizer_needs = ("pad_token",)
    baselines = ("tfidf",)
    budget_unit = "labels"
    scored_on = "test"

    @property
    def problem_type(self) -> str:
        """`single_label_classification`, `multi_label_classification` or `regression`."""
        return self.config.objective.problem_type

    def read_corpus(self, strict: bool = True) -> Corpus:
        data, seed = self.config.data, self.config.seed
        if strict:
            corpus, names = load_labelled(data, self.problem_type, seed)
        else:  # only train is encoded, so labels that train lacks raise no error here, nor does a split without any
            corpus = load_corpus(**data.source() | {"columns": None})
            encoded, names = encode_labels(DatasetDict(train=corpus["train"]), data.label_column, self.problem_type)
            corpus["train"] = label_budget(encoded["train"], data.max_train_rows, self.problem_type, seed)
        columns = (data.text_column, *([data.text_pair_column] if data.text_pair_column else []))
        return Corpus({split: {"": texts} for split, texts in corpus.items()}, columns, tuple(names))

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_examples(
            parts[""], self.tokenizer, max_length=data.max_length, text_column=data.text_column,
            text_pair_column=data.text_pair_column, num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    def model_fields(self) -> dict[str, Any]:
        names = self.corpus.label_names
        fields: dict[str, Any] = {"num_labels": len(names), "problem_type": self.problem_type}
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: i for i, name in enumerate(names)}
        return fields

    def objective(self, model: nn.Module) -> Objective:
        # A model without segments cannot read the tokenizer's segment ids.
        segments = getattr(unwrap(model).config, "type_vocab_size", 2) >= 2
        left_out = () if segments else ("token_type_ids",)
        return classification(ClassificationCollator(self.tokenizer, left_out), self.problem_type)

    def reported_objective(self, model: nn.Module) -> Objective:
        return self.training_objective or self.objective(model)  # packed rows serve evaluations, too

    def _predict(self, run: Run, model: nn.Module, rows: Dataset) -> tuple[dict[str, float], np.ndarray]:
        """The metrics of some rows, and their logits."""
        size = run.training.per_device_eval_batch_size
        logits = predict_logits(run.accelerator, model, rows, self.reported_objective(model), size)
        predictions = predict(self.problem_type, logits)
        return compute_metrics(self.problem_type, predictions, np.asarray(rows["labels"])), logits

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        size = run.training.per_device_eval_batch_size
        loss = mean_loss(run.accelerator, model, rows, self.reported_objective(model), size)["loss"]
        return self._predict(run, model, rows)[0] | {"loss": loss}

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        rows = data.held_out[split][""]
        metric, logits = self._predict(run, model, rows)
        if run.is_main:
            write_predictions(run.output, self.problem_type, np.asarray(rows["labels"]), logits)
        facts = {"label_names": list(self.corpus.label_names), "train_examples": len(data.train)}  # type: ignore[arg-type]
        return Scores(metric, facts | {"main_metric": MAIN_METRIC[self.problem_type], "split": split})

    @property
    def metrics(self) -> tuple[str, ...]:
        main = MAIN_METRIC[self.problem_type]
        return main, *(name for name in METRICS[self.problem_type] if name != main)

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "predictions.parquet")
        predictions, labels = (np.array(table[column].tolist()) for column in ("prediction", "label"))
        num_labels = len(read_record(folder)["label_names"])
        return class_statistics(self.problem_type, metric, predictions, labels, num_labels)

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._predict(run, model, rows)


def write_predictions(output: Path, problem_type: str, labels: np.ndarray, logits: np.ndarray) -> None:
    """predictions.parquet: a row an example of the scored split, in its order: index, label, prediction, logits."""
    table = {"label": labels.tolist(), "prediction": predict(problem_type, logits).tolist(), "logits": logits.tolist()}
    pd.DataFrame(table).rename_axis("index").reset_index().to_parquet(output / "predictions.parquet", index=False)
