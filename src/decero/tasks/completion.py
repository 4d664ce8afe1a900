"""Completion: a decoder answers a prompt, in its tokenizer's chat template or behind a separator."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from decero.config.finetuning import CompletionSection, FinetuneCausalLM
from decero.config.sections import ModelSection
from decero.data.chat_template import use_chatml
from decero.data.dialogue_rows import tokenize_dialogues, turn_end
from decero.data.languages import Direction
from decero.data.prompt_completion import PromptCompletion, tokenize_prompts
from decero.data.tokenization import side_lengths
from decero.errors import UserError
from decero.execution.decoder_tokenizer import fit_decoder
from decero.execution.objective import Objective, language_model
from decero.execution.token_scores import check_causal
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
        if self.config.objective.chat_template == "chatml":
            use_chatml(found)
        fit_decoder(found)  # a prompt must not end before its answer
        return found

    def usage(self, folder: Path) -> list[str]:
        dialogues = [task.messages_column is not None for task in self.config.data.tasks.values()]
        chat = [f"decero chat {folder}"] if any(dialogues) else []
        return chat if all(dialogues) else [*chat, *super().usage(folder)]

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

    def tokenize_part(
        self, part: str, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **settings: Any
    ) -> Dataset:
        if self.config.data.tasks[part].messages_column is None:
            return tokenize_prompts(dataset, tokenizer, **settings, **self.style)
        if "chat" not in self.style:
            raise UserError(
                f"data.tasks.{part}.messages_column: dialogues need a chat template; tokenizer "
                f"{tokenizer.name_or_path} has none, or it is off; set objective.chat_template=chatml"
            )
        settings.pop("prefix")
        return tokenize_dialogues(dataset, tokenizer, **settings)

    def load_data(self, run: Run, splits: tuple[str, ...] | None = None) -> TaskData:
        """As `TextToText`, and say which share of the tokens of dialogues is scored, and how many turns are dropped."""
        data = super().load_data(run, splits)
        dialogues = any(task.messages_column for task in self.config.data.tasks.values())
        if dialogues and run.progress and "train" in self.corpus.splits:
            run.print(scored_line(data.train))  # type: ignore[arg-type]
        return data

    def build_model(self, section: ModelSection | None = None) -> PreTrainedModel:
        model: Any = super().build_model(section)
        ends = [self.tokenizer.eos_token_id]  # completions end with it
        if "chat" in self.style and (end := turn_end(self.tokenizer)) is not None:
            ends = list(dict.fromkeys([end, *ends]))  # and turns with that of the template, often the same
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        return model

    def optimize(self, run: Run, model: PreTrainedModel, data: TaskData) -> Objective:
        """Raises UserError for a model that reads later tokens, such as BERT without `is_decoder`, or XLNet."""
        check_causal(model, f"model: {self.config.model.config or self.config.model.name_or_path}")
        return super().optimize(run, model, data)

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


def scored_line(rows: Dataset) -> str:
    """Say which share of the tokens of the training rows is scored, and what long dialogues lose."""
    read, written = side_lengths(rows)
    table = rows.select_columns(["scored", "dropped"]).with_format("arrow")[:]
    borders = np.asarray(table["scored"].combine_chunks().flatten(), dtype=np.int64)
    dropped = np.nan_to_num(np.asarray(table["dropped"], dtype=np.float64))  # null in rows of pairs
    scored, tokens = int(written.sum() + (borders[1::2] - borders[::2]).sum()), int((read + written).sum())
    line = f"dialogues: {scored / tokens:.1%} of {tokens:,} training tokens are scored"
    if dropped.any():
        line += (
            f"; {int((dropped > 0).sum()):,} are longer than data.max_source_length and lose their oldest turns, "
            f"{int(dropped.sum()):,} turns in all"
        )
    return line


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
