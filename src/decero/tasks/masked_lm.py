"""Masked language modelling for encoders (Devlin et al. 2019; masks drawn anew each epoch: Liu et al. 2019)."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn
from transformers import AutoModelForMaskedLM

from decero.config.pretraining import PretrainMLM, UnlabelledData
from decero.data.collators import MaskedLanguageModeling
from decero.data.corpus import open_corpus
from decero.data.tokenization import tokenize_documents
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import ExampleStatistics
from decero.execution.objective import Objective, masked_lm
from decero.tasks.base import Corpus, Scores, Task, TaskData
from decero.training.evaluation import evaluate_tokens, predict_masked
from decero.training.records import read_record
from decero.training.runs import Run


class MaskedLM(Task):
    recipe, Config, auto_class = "pretrain_mlm", PretrainMLM, AutoModelForMaskedLM
    tokenizer_needs = ("mask_token", "pad_token")
    splits = ("train", "validation")
    metrics = token_metrics = ("eval_loss", "eval_accuracy")
    most_epochs = 40  # BERT read its text 40 times (Devlin et al. 2019, appendix A.2)

    def read_corpus(self, strict: bool = True) -> Corpus:
        return read_documents(self.config.data)

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_documents(
            parts[""], self.tokenizer, max_length=data.max_length, text_column=data.text_column,
            num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    def _objective(self, frozen: bool) -> Objective:
        settings = self.config.objective.model_dump(exclude={"scored_queries"})
        collate = MaskedLanguageModeling(self.tokenizer, seed=self.config.seed, frozen=frozen, **settings)
        # A compiler wants one shape; the last layer would compute another number of positions in each batch.
        return masked_lm(collate, self.config.objective.scored_queries and not self.config.training.compile)

    def objective(self, model: nn.Module) -> Objective:
        return self._objective(frozen=False)

    def reported_objective(self, model: nn.Module) -> Objective:
        return self._objective(frozen=True)

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        return Scores(score_tokens(self, run, model, data), rows_facts(data))

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        return token_statistics(folder, metric)

    def validation_metric(self, metric: str) -> str:
        return "loss"

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        size = run.training.per_device_eval_batch_size
        return predict_masked(run.accelerator, model, rows, self.reported_objective(model), size)


def read_documents(data: UnlabelledData) -> Corpus:
    """Text without labels; a stream of it with `data.streaming`."""
    return Corpus({split: {"": texts} for split, texts in open_corpus(**data.source()).items()}, (data.text_column,))


def score_tokens(task: Task, run: Run, model: nn.Module, data: TaskData) -> dict[str, float]:
    """Loss and accuracy over the scored validation tokens, each of which goes to predictions.parquet."""
    if data.validation is None:
        return {}
    size = run.training.per_device_eval_batch_size
    return evaluate_tokens(run.accelerator, model, data.validation, task.reported_objective(model), size, run.output)


def rows_facts(data: TaskData) -> dict[str, Any]:
    """How many rows the final scores are of."""
    return {} if data.validation is None else {"scored_rows": len(data.validation)}


def token_statistics(folder: Path, metric: str) -> ExampleStatistics:
    """A row an example: the sum over its scored tokens of nats, or of right answers; and their number."""
    table, rows = pd.read_parquet(folder / "predictions.parquet"), read_record(folder)["scored_rows"]
    values = -table["log_probability"] if metric == "eval_loss" else table["label"] == table["prediction"]
    sums_N = np.bincount(table["row"], weights=values.to_numpy(np.float64), minlength=rows)
    return ExampleStatistics(np.stack([sums_N, np.bincount(table["row"], minlength=rows)], axis=1), ratio)
