"""What masked and permutation language modelling and denoising share: text without labels, and scores over tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn

from decero.config.pretraining import UnlabelledData
from decero.data.corpus import open_corpus
from decero.data.tokenization import tokenize_documents
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import ExampleStatistics
from decero.tasks.base import Corpus, Scores, Task, TaskData
from decero.training.evaluation import evaluate_tokens, predict_masked
from decero.training.records import read_record
from decero.training.runs import Run


class ScoredTokens(Task):
    """A task whose scores are loss and accuracy over the scored validation tokens."""

    splits = ("train", "validation")
    metrics = token_metrics = ("eval_loss", "eval_accuracy")

    def read_corpus(self, strict: bool = True) -> Corpus:
        return read_documents(self.config.data, needs_train=not self.config.eval_only)

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_documents(
            parts[""], self.tokenizer, max_length=data.max_length, text_column=data.text_column,
            num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        if data.validation is None:
            return Scores({}, {})
        objective, size = self.reported_objective(model), run.training.per_device_eval_batch_size
        metric = evaluate_tokens(run.accelerator, model, data.validation, objective, size, run.output)
        return Scores(metric, {"scored_rows": len(data.validation)})

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        """Per row: the sum over its scored tokens of nats, or of right answers; and the number of tokens."""
        table, rows = pd.read_parquet(folder / "predictions.parquet"), read_record(folder)["scored_rows"]
        values = -table["log_probability"] if metric == "eval_loss" else table["label"] == table["prediction"]
        sums_N = np.bincount(table["row"], weights=values.to_numpy(np.float64), minlength=rows)
        return ExampleStatistics(np.stack([sums_N, np.bincount(table["row"], minlength=rows)], axis=1), ratio)

    def validation_metric(self, metric: str) -> str:
        return "loss"

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        size = run.training.per_device_eval_batch_size
        return predict_masked(run.accelerator, model, rows, self.reported_objective(model), size)


def read_documents(data: UnlabelledData, needs_train: bool = True) -> Corpus:
    """Text without labels; a stream of it with `data.streaming`, which always has train."""
    notes: list[str] = []
    source = data.source() | ({} if data.streaming else {"say": notes.append, "needs_train": needs_train})
    splits = {split: {"": texts} for split, texts in open_corpus(**source).items()}
    return Corpus(splits, (data.text_column,), notes=tuple(notes))
