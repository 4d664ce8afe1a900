"""Denoising for encoder-decoders: span corruption (Raffel et al. 2020), infilling (Lewis et al. 2020), prefix LM."""

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from decero.config.pretraining import PretrainSeq2Seq
from decero.data.corruption import OBJECTIVES, DenoisingCollator
from decero.data.pairs import ShuffledSources
from decero.data.tokenization import tokenize_documents
from decero.execution.objective import Objective, language_model
from decero.execution.unwrap import unwrap
from decero.tasks.base import TaskData
from decero.tasks.scored_tokens import ScoredTokens
from decero.training.evaluation import mean_loss
from decero.training.runs import Run


class Denoising(ScoredTokens):
    recipe, Config, auto_class = "pretrain_seq2seq", PretrainSeq2Seq, AutoModelForSeq2SeqLM
    tokenizer_needs = ("eos_token", "pad_token")
    most_epochs = 16  # T5 read its text once; a small corpus bears a few passes (Muennighoff et al. 2023)

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
