"""Denoising for encoder-decoders: span corruption (Raffel et al. 2020), infilling (Lewis et al. 2020), prefix LM."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from decero.config.pretraining import PretrainSeq2Seq
from decero.data.corruption import OBJECTIVES, DenoisingCollator
from decero.data.pairs import ShuffledSources
from decero.data.tokenization import tokenize_documents
from decero.evaluation.examples import ExampleStatistics
from decero.execution.objective import Objective, language_model
from decero.execution.unwrap import unwrap
from decero.tasks.base import Corpus, Scores, Task, TaskData
from decero.tasks.masked_lm import read_documents, rows_facts, score_tokens, token_statistics
from decero.training.evaluation import mean_loss, predict_masked
from decero.training.runs import Run


class Denoising(Task):
    recipe, Config, auto_class = "pretrain_seq2seq", PretrainSeq2Seq, AutoModelForSeq2SeqLM
    tokenizer_needs = ("eos_token", "pad_token")
    splits = ("train", "validation")
    metrics = token_metrics = ("eval_loss", "eval_accuracy")
    most_epochs = 16  # T5 read its text once; a small corpus bears a few passes (Muennighoff et al. 2023)

    def read_corpus(self, strict: bool = True) -> Corpus:
        return read_documents(self.config.data)

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_documents(
            parts[""], self.tokenizer, max_length=data.max_length - 1, text_column=data.text_column,
            special_tokens=False, num_proc=data.num_proc, where=split,
        )  # fmt: skip
        return {"": rows}

    def _collator(self, model: nn.Module, frozen: bool) -> DenoisingCollator:
        config = self.config
        settings = config.objective.model_dump(exclude={"name"}, exclude_none=True)
        return OBJECTIVES[config.objective.name](
            self.tokenizer, unwrap(model).config.decoder_start_token_id, max_length=config.data.max_length - 1,
            seed=config.seed, frozen=frozen, **settings,
        )  # fmt: skip

    def objective(self, model: nn.Module) -> Objective:
        return language_model(self._collator(model, frozen=False))

    def reported_objective(self, model: nn.Module) -> Objective:
        return language_model(self._collator(model, frozen=True))

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """`loss`, and `source_gain`: nats a token that are lost when each target gets the source of another row."""
        shuffled = language_model(ShuffledSources(self._collator(model, frozen=True), rows))
        both, size = (self.reported_objective(model), shuffled), run.training.per_device_eval_batch_size
        loss, other = (mean_loss(run.accelerator, model, rows, each, size)["loss"] for each in both)
        return {"loss": loss, "source_gain": other - loss}

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        return Scores(score_tokens(self, run, model, data), rows_facts(data))

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        return token_statistics(folder, metric)

    def validation_metric(self, metric: str) -> str:
        return "loss"

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        size = run.training.per_device_eval_batch_size
        return predict_masked(run.accelerator, model, rows, self.reported_objective(model), size)
