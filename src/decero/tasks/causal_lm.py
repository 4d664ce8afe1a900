"""Causal language modelling for decoders (Radford et al. 2018, 2019)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from decero.config.pretraining import PretrainCausalLM
from decero.config.sections import ModelSection
from decero.data.causal import OBJECTIVES, CausalLanguageModeling, count_bytes, start_id, tokenize_text
from decero.data.hybrid import HybridLanguageModeling
from decero.data.image_tokens import image_tokens_of
from decero.data.special_tokens import special_tokens_around
from decero.errors import UserError
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import ExampleStatistics
from decero.execution.build import config_of, tokenizer_for
from decero.execution.decoder_tokenizer import fit_decoder
from decero.execution.objective import Objective, language_model
from decero.execution.pretraining_objective import HYBRID, mark_objective
from decero.execution.token_scores import check_causal
from decero.tasks.base import Corpus, Scores, Task, TaskData
from decero.tasks.likelihood import document_likelihood, text_likelihood
from decero.tasks.scored_tokens import read_documents
from decero.training.evaluation import mean_loss
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

    @property
    def is_hybrid(self) -> bool:
        """Whether the model learns to fill holes, too."""
        return self.config.objective.name == HYBRID

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        needs = (*self.tokenizer_needs, *(("mask_token", "pad_token") if self.is_hybrid else ()))
        found = tokenizer_for(self.config.tokenizer, self.config.model, needs=needs)
        fit_decoder(found)  # a prompt must not end before its answer
        start = start_id(found, self.config.data.start_token)
        if self.is_hybrid and special_tokens_around(found)[0] != [start]:
            raise UserError(
                f"tokenizer {found.name_or_path}: does not put {found.convert_ids_to_tokens(start)} before a text, and "
                "hybrid_lm predicts each token from the one before it; train one with recipes/train_tokenizer.py"
            )
        return found

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The model.

        Raises UserError for a hybrid of a stock class: none fills holes with a decoder's weights. And for one with
        relative positions: a decoder has no buckets for later tokens.
        """
        if self.is_hybrid and (kind := (config := config_of(section)).model_type) != "decero_decoder":
            raise UserError(
                f"objective.name=hybrid_lm: {kind} has no class that fills holes with a decoder's weights; use a "
                "decero_decoder, such as configs/model/modern_decoder_small.yaml"
            )
        if self.is_hybrid and config.position_embedding_type == "relative":
            raise UserError(
                "objective.name=hybrid_lm: a decoder's relative positions know no later tokens, and some rows are read "
                "both ways; set model.overrides.position_embedding_type=rotary"
            )
        return super().initial_model(section)

    def optimize(self, run: Run, model: PreTrainedModel, data: TaskData) -> Objective:
        """Raises UserError for a model that reads later tokens, such as BERT without `is_decoder`, or XLNet."""
        check_causal(model, f"model: {self.config.model.config or self.config.model.name_or_path}")
        return super().optimize(run, model, data)

    def read_corpus(self, strict: bool = True) -> Corpus:
        return read_documents(self.config.data, needs_train=not self.config.eval_only)

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_text(
            parts[""], self.tokenizer, max_length=data.max_length, text_column=data.text_column,
            start_token=data.start_token, num_proc=data.num_proc, where=split,
        )  # fmt: skip
        if image_tokens_of(self.tokenizer) and isinstance(rows, Dataset) and not all(rows["ends"]):
            raise UserError(
                f"data.max_length={data.max_length} cuts pictures of {split}: one needs a whole row, with its caption; "
                f"set data.max_length={self.tokenizer.model_max_length}"
            )
        return {"": rows}

    def _collator(self, **more: Any) -> CausalLanguageModeling:
        """The collator. more: arguments of that of a hybrid."""
        settings = self.config.objective.model_dump(exclude={"name"}, exclude_none=True)
        if self.is_hybrid:
            return HybridLanguageModeling(self.tokenizer, seed=self.config.seed, **(settings | more))
        return OBJECTIVES[self.config.objective.name](self.tokenizer, seed=self.config.seed)

    def objective(self, model: nn.Module) -> Objective:
        return language_model(self._collator())

    def reported_objective(self, model: nn.Module) -> Objective:
        return self.objective(model)

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """`loss`, `perplexity` and, where the tokens give the text back, `bits_per_byte`; of a hybrid `masked_loss`."""
        size = run.training.per_device_eval_batch_size
        found = text_likelihood(run.accelerator, model, rows, self.tokenizer, size)
        return found | self.masked_loss(run, model, rows)

    def masked_loss(self, run: Run, model: nn.Module, rows: Dataset) -> dict[str, float]:
        """`masked_loss` of a hybrid: nats a masked token, with the same masks every time; {} for other models."""
        if not self.is_hybrid:
            return {}
        objective = language_model(self._collator(causal_fraction=0.0, frozen=True))
        found = mean_loss(run.accelerator, model, rows, objective, run.training.per_device_eval_batch_size)
        return {"masked_loss": found["loss"]}

    def kept(self, model: Any) -> PreTrainedModel:
        self.prepare_to_save(model)
        return model

    def prepare_to_save(self, model: Any) -> None:
        mark_objective(model.config, HYBRID if self.is_hybrid else None)

    def usage(self, folder: Path) -> list[str]:
        if image_tokens_of(self.tokenizer):
            return [f"decero draw {folder}"]
        return [*super().usage(folder), *([f"decero fill {folder} FILE"] if self.is_hybrid else [])]

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        facts: dict[str, Any] = {"context": self.max_length}
        if data.validation is None:
            return Scores({}, facts)
        size = run.training.per_device_eval_batch_size
        metric, documents = document_likelihood(run.accelerator, model, data.validation, self.tokenizer, size)
        metric |= self.masked_loss(run, model, data.validation)
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
