"""Causal language modelling for decoders (Radford et al. 2018, 2019)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from decero.config.pretraining import PretrainCausalLM
from decero.data.causal import OBJECTIVES, count_bytes, strip_eos, tokenize_text
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import ExampleStatistics
from decero.execution.objective import Objective, language_model
from decero.tasks.base import Corpus, Scores, Task, TaskData
from decero.tasks.likelihood import document_likelihood, text_likelihood
from decero.tasks.scored_tokens import read_documents
from decero.training.runs import Run


class CausalLM(Task):
    recipe, Config, auto_class = "pretrain_causal_lm", PretrainCausalLM, AutoModelForCausalLM
    command = "generate"
    tokenizer_needs = ("eos_token",)
    splits = ("train", "validation")
    most_epochs = 4  # up to four passes are worth almost what new text is (Muennighoff et al. 2023, section 5)
    generates = True
    metrics = ("bits_per_byte", "loss", "perplexity")
    token_metrics = ("loss", "perplexity")
    baselines = ("ngram",)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        found = super().load_tokenizer()
        strip_eos(found)  # a prompt must not end before its answer
        return found

    def read_corpus(self, strict: bool = True) -> Corpus:
        return read_documents(self.config.data)

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_text(
            parts[""], self.tokenizer, max_length=data.max_length, text_column=data.text_column,
            start_token=data.start_token, num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    def objective(self, model: nn.Module) -> Objective:
        return language_model(OBJECTIVES[self.config.objective.name](self.tokenizer, seed=self.config.seed))

    def reported_objective(self, model: nn.Module) -> Objective:
        return self.objective(model)

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """`loss`, `perplexity` and, where the tokens give the text back, `bits_per_byte`."""
        size = run.training.per_device_eval_batch_size
        return text_likelihood(run.accelerator, model, rows, self.tokenizer, size)

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        facts: dict[str, Any] = {"context": self.max_length}
        if data.validation is None:
            return Scores({}, facts)
        size = run.training.per_device_eval_batch_size
        metric, documents = document_likelihood(run.accelerator, model, data.validation, self.tokenizer, size)
        if run.is_main:
            documents.to_parquet(run.output / "predictions.parquet", index=False)
        return Scores(metric, facts | {"bytes": count_bytes(data.validation)})

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "predictions.parquet")
        bits = metric == "bits_per_byte"
        amount = table["nats"] / (math.log(2) if bits else 1)
        values_NK = np.stack([amount, table["bytes" if bits else "tokens"].astype(np.float64)], axis=1)
        return ExampleStatistics(values_NK, (lambda sum_K: math.exp(ratio(sum_K))) if metric == "perplexity" else ratio)

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self.evaluate(run, model, rows, data)

    @property
    def remark(self) -> str:
        return f" (context {self.max_length} tokens)"
