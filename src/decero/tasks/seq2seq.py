"""Sequence to sequence: an encoder-decoder answers a text (Sutskever et al. 2014; Vaswani et al. 2017)."""

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from decero.config.finetuning import FinetuneSeq2Seq
from decero.config.sections import ModelSection
from decero.data.pairs import PairCollator, ShuffledSources
from decero.data.tokenization import tokenize_pairs
from decero.execution.objective import Objective, language_model
from decero.execution.unwrap import unwrap
from decero.tasks.base import TaskData
from decero.tasks.text_to_text import TextToText
from decero.training.evaluation import mean_loss
from decero.training.runs import Run


class Seq2Seq(TextToText):
    recipe, Config, auto_class = "finetune_seq2seq", FinetuneSeq2Seq, AutoModelForSeq2SeqLM
    tokenizer_needs = ("pad_token",)
    needs_offsets = False

    @property
    def max_length(self) -> int:
        return max(self.config.data.max_source_length, self.config.data.max_target_length)

    def tokenize_part(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Dataset:
        return tokenize_pairs(dataset, tokenizer, **settings)

    def build_model(self, section: ModelSection | None = None) -> PreTrainedModel:
        model: Any = super().build_model(section)
        end = self.tokenizer("a")["input_ids"][-1]  # targets end with it
        model.config.eos_token_id = model.generation_config.eos_token_id = end
        return model

    def _collator(self, model: nn.Module) -> PairCollator:
        return PairCollator(self.tokenizer, unwrap(model).config.decoder_start_token_id)

    def objective(self, model: nn.Module) -> Objective:
        return language_model(self._collator(model), self.config.objective.label_smoothing)

    def reported_objective(self, model: nn.Module) -> Objective:
        return language_model(self._collator(model))

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """As `TextToText`, and `source_gain`: nats a token that are lost when sources are swapped."""
        shuffled = language_model(ShuffledSources(self._collator(model), rows))
        size = run.training.per_device_eval_batch_size
        other = mean_loss(run.accelerator, model, rows, shuffled, size)["loss"]
        metrics = super().evaluate(run, model, rows, data)
        return {"loss": metrics["loss"], "source_gain": other - metrics["loss"]} | metrics

    def prepare_to_save(self, model: Any) -> None:
        """How much of a source it reads (no more was ever read in training), behind which prefix, how it writes."""
        super().prepare_to_save(model)
        data = self.config.data
        self.tokenizer.model_max_length = data.max_source_length
        model.config.task_specific_params = {name: {"prefix": task.prefix} for name, task in data.tasks.items()}
