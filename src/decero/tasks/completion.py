"""Completion: a decoder answers a prompt, in its tokenizer's chat template or behind a separator."""

from functools import cached_property
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from decero.config.finetuning import CompletionSection, FinetuneCausalLM
from decero.config.sections import ModelSection
from decero.data.causal import strip_eos
from decero.data.languages import Direction
from decero.data.prompt_completion import PromptCompletion, tokenize_prompts
from decero.errors import UserError
from decero.execution.objective import Objective, language_model
from decero.tasks.base import Scores, TaskData
from decero.tasks.text_to_text import TextToText
from decero.training.runs import Run

SEPARATOR = "\n"


class Completion(TextToText):
    recipe, Config, auto_class = "finetune_causal_lm", FinetuneCausalLM, AutoModelForCausalLM
    command = "generate"
    tokenizer_needs = ("eos_token",)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        found = super().load_tokenizer()
        strip_eos(found)  # a prompt must not end before its answer
        return found

    @cached_property
    def style(self) -> dict[str, Any]:
        """What stands between prompt and answer: `prompt_style`."""
        return prompt_style(self.config.objective, self.tokenizer)

    @property
    def max_length(self) -> int:
        return self.config.data.max_source_length + self.config.data.max_target_length

    def direction(self, name: str) -> Direction:
        task = self.config.data.tasks[name]
        for setting in ("source_lang", "target_lang"):
            if getattr(task, setting) is not None:
                raise UserError(
                    f"data.tasks.{name}.{setting}: a decoder reads no languages; remove it, or use finetune_seq2seq"
                )
        return Direction()

    def tokenize_part(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Dataset:
        return tokenize_prompts(dataset, tokenizer, **settings, **self.style)

    def build_model(self, section: ModelSection | None = None) -> PreTrainedModel:
        model: Any = super().build_model(section)
        model.generation_config.eos_token_id = self.tokenizer.eos_token_id  # completions end with it
        return model

    def objective(self, model: nn.Module) -> Objective:
        return language_model(PromptCompletion(self.tokenizer), self.config.objective.label_smoothing)

    def reported_objective(self, model: nn.Module) -> Objective:
        return language_model(PromptCompletion(self.tokenizer))

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        metric, record = super().score(run, model, data)
        return Scores(metric, record | self.style)

    def prepare_to_save(self, model: Any) -> None:
        """How it writes, and what its users put around a text, unless the chat template does that."""
        super().prepare_to_save(model)
        model.config.task_specific_params = None
        if "separator" in self.style:
            tasks = self.config.data.tasks.items()
            frames = {name: {"prefix": task.prefix, "suffix": self.style["separator"]} for name, task in tasks}
            model.config.task_specific_params = frames


def prompt_style(section: CompletionSection, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`chat` or `separator`, as `tokenize_prompts` takes them.

    Raises UserError: a template that is asked for and not there, a separator beside one.
    """
    has = tokenizer.chat_template is not None
    if section.chat_template == "on" and not has:
        raise UserError(
            f"objective.chat_template: tokenizer {tokenizer.name_or_path} has none; leave it out and set "
            "objective.separator"
        )
    if not has or section.chat_template == "off":
        return {"separator": SEPARATOR if section.separator is None else section.separator}
    if section.separator is not None:
        raise UserError(
            "objective.separator: the chat template says what stands between prompt and answer; leave it out, or set "
            "objective.chat_template=off"
        )
    return {"chat": True}
