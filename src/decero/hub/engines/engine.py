"""Define an engine: another program that runs a stock model. Each has a file here, which says what it can read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

HEADS_OF_ENCODERS = (
    "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
    "ForMultipleChoice", "ForPreTraining",
)  # fmt: skip


@dataclass(frozen=True)
class Running:
    """A written model, run by its engine.

    outputs: a batch, as the stock model takes it, -> outputs by name; `token_log_probs` (batch, length) are the log
        probabilities of the next tokens, the end token last, where an engine gives no logits. None: it gives neither.
    write: ids of a prompt and a number -> at most so many ids by greedy search, with the end token. None: no text.
    """

    outputs: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None
    write: Callable[[list[int], int], list[int]] | None = None


@dataclass(frozen=True)
class Engine:
    """What `decero export --to NAME` needs to know.

    name: also that of the extra. packages: what the extra installs, as Python imports it.
    heads: stock family -> the heads that the engine reads (the ends of our class names).
    quantizations: values of --quantization. weights: patterns of its files with weights.
    convert: model in fp32, tokenizer, folder, quantization -> writes the folder. Raises UserError for an option that
        the engine lacks.
    run: the same folder, model and tokenizer -> the model in its engine.
    usage: name and class of the model -> Python lines for the model card.
    library: name of the library in the card's metadata. task: there, too, where it is not that of the head.
    """

    name: str
    packages: tuple[str, ...]
    heads: Mapping[str, tuple[str, ...]]
    quantizations: tuple[str, ...]
    weights: tuple[str, ...]
    convert: Callable[[PreTrainedModel, Any, Path, str | None], None]
    run: Callable[[Path, PreTrainedModel, Any], Running]
    usage: Callable[[str, PreTrainedModel], str]
    library: str
    task: str | None = None
    needs_tokenizer: bool = True
    keeps_tokenizer: bool = True  # the files of the tokenizer are copied; else the engine's own file holds it
