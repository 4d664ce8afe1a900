"""Sequence to sequence: an encoder-decoder answers a text (Sutskever et al. 2014; Vaswani et al. 2017)."""

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from decero.config.finetuning import FinetuneSeq2Seq
from decero.config.sections import ModelSection
from decero.data.languages import check_tag, end_token, target_tags
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
    command = "translate"
    tokenizer_needs = ("pad_token",)
    needs_offsets = False

    @property
    def max_length(self) -> int:
        return max(self.config.data.max_source_length, self.config.data.max_target_length)

    def tokenize_part(
        self, part: str, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **settings: Any
    ) -> Dataset:
        tags = target_tags(tokenizer)
        for text in dataset["source"] if tags and not settings["prefix"].startswith(">>") else ():
            setting = f"data.tasks.{part}.target_lang"
            check_tag(tags, settings["prefix"] + (text or ""), setting, f"tokenizer {tokenizer.name_or_path}")
        return tokenize_pairs(dataset, tokenizer, **settings)

    def build_model(self, section: ModelSection | None = None) -> PreTrainedModel:
        starts = self.starts  # refuses languages before anything is loaded
        model: Any = super().build_model(section)
        for name, value in starts.items():
            setattr(model.generation_config, name, value)
        end = end_token(self.tokenizer)  # targets end with it
        if end is not None:  # `tokenize_pairs` refuses the others
            model.config.eos_token_id = model.generation_config.eos_token_id = end
        return model

    @property
    def starts(self) -> dict[str, Any]:
        """How every answer starts, by its language: fields of generation_config, None where the parts differ."""
        parts = [self.direction(name).start for name in self.config.data.tasks]
        return {key: parts[0][key] if all(part == parts[0] for part in parts) else None for key in parts[0]}

    def _collator(self, model: nn.Module) -> PairCollator:
        start = None if "decoder_start_token_id" in self.starts else unwrap(model).config.decoder_start_token_id
        return PairCollator(self.tokenizer, start)

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
        tasks: dict[str, Any] = self.config.data.tasks
        self.tokenizer.model_max_length = self.config.data.max_source_length
        model.config.task_specific_params = {name: {"prefix": self.prefix_of(name)} for name in tasks}
        if "decoder_start_token_id" in self.starts:
            model.config.decoder_start_token_id = self.starts["decoder_start_token_id"]
        directions = [self.direction(name) for name in tasks]
        directions[0].apply(self.tokenizer)
        if len({each.target for each in directions}) > 1:  # users name it
            self.tokenizer.tgt_lang = None
