"""How a decoder is asked: by the chat template that its tokenizer has, or by text and what separates the answer."""

from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from decero.config.sections import Section
from decero.errors import UserError
from decero.tasks.text_to_text import TaskSection

SEPARATOR = "\n"


class CompletionSection(Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the completion spread over the vocabulary")
    chat_template: Literal["auto", "on", "off"] = Field(
        "auto", description="ask in a turn of the user, as the tokenizer's template writes it; auto: where it has one"
    )
    separator: str | None = Field(
        None, min_length=1, description="put after every source where no chat template is; a line break when not set"
    )


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


def prompts_of(style: dict[str, Any], tasks: dict[str, TaskSection]) -> dict[str, dict[str, str]] | None:
    """`task_specific_params`: what a checkpoint's users put around a text; None where the chat template does."""
    if "chat" in style:
        return None
    return {name: {"prefix": task.prefix, "suffix": style["separator"]} for name, task in tasks.items()}
