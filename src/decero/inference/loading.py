"""Load a decero or stock checkpoint and check that its head fits the command."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from decero.data.packages import resolve_package_path
from decero.data.special_tokens import pad_with
from decero.data.tokenizer import check_fits_model
from decero.errors import UserError, did_you_mean, missing_package
from decero.execution.classification_head import pad_as
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from decero.models import AUTO_CLASSES

# What a head does -> (Auto class, table of such heads in transformers, commands for it). The first match counts,
# because transformers also lists BartForConditionalGeneration as a masked language model.
KINDS: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "answers texts": (
        AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, ("translate", "summarize"),
    ),
    "classifies texts": (
        AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        ("classify",),
    ),
    "continues texts": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ("generate",)),
    "fills holes in texts": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES, ("fill",)),
}  # fmt: skip


@dataclass
class Loaded:
    """Hold a model in evaluation mode, its tokenizer, and the name that the user gave."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generation_checked: bool = False

    def positions(self) -> int | None:
        """Return the most tokens in a source, including special tokens; None means no limit.

        This is the smaller limit of model and tokenizer. T5 has relative positions without a limit, but its tokenizer
        has one.
        """
        own = positions_of(self.model) or getattr(self.model.config.get_text_config(), "n_positions", None)
        limits = [limit for limit in (own, self.tokenizer.model_max_length) if limit and 0 < limit < 10**9]
        return min(limits, default=None)


def load(
    name: str | Path | Loaded, command: str, *, revision: str | None = None, trust_remote_code: bool = False,
    bf16: bool = False,
) -> Loaded:  # fmt: skip
    """Load a model with the head that `command` needs, onto the GPU if there is one.

    command: `translate`, `summarize`, `generate`, `fill` or `classify`.
    trust_remote_code: allow Python code from the checkpoint; needs `revision`.
    bf16: convert weights to bfloat16. Otherwise a GPU keeps the stored dtype, and a CPU uses fp32.

    Raises UserError if there is no such model, if its head is of another kind (the message names the commands that
    fit), if it needs remote code and that is not allowed, or if its tokenizer is missing or does not fit.
    """
    if isinstance(name, Loaded):
        _choose(name.name, name.model.config, [type(name.model).__name__], command)
        return name
    name = str(name)
    if trust_remote_code and revision is None:
        raise UserError("--trust-remote-code needs --revision: give the commit whose code you trust")
    path = resolve_package_path(name)
    siblings = [each.name for each in Path(path).parent.glob("*/")] if "/" in path and not Path(path).exists() else []
    if near := did_you_mean(Path(path).name, siblings, f"{Path(path).parent}/"):
        raise UserError(f"{name}: no such folder{near}")
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored: Any = "auto" if device.type == "cuda" else torch.float32
    config = _quietly(name, lambda: AutoConfig.from_pretrained(path, **hub))
    auto_class = _choose(name, config, config.architectures or [], command)
    model = _quietly(
        name,
        lambda: auto_class.from_pretrained(
            path, dtype=torch.bfloat16 if bf16 else stored, use_safetensors=True, **hub
        ).to(device),
    )
    tokenizer = _quietly(f"{name}: tokenizer", lambda: AutoTokenizer.from_pretrained(path, **hub))
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(f"{name}: no tokenizer; save the one it was trained with in this folder")
    pad_with(tokenizer, model.config.get_text_config().pad_token_id)  # GPT-2 and Llama have no padding token
    if command == "classify" or model.config.pad_token_id is None:
        pad_as(model, tokenizer)
    check_fits_model(tokenizer, model.get_input_embeddings().num_embeddings, name)
    return Loaded(name, model.eval(), tokenizer)


def _quietly(what: str, build: Callable[[], Any]) -> Any:
    """Call `build` without log messages; turn any error into a one-line UserError."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return build()
    except Exception as error:  # transformers and hub code raise all kinds, even a bare Exception
        message = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            message = "needs its own Python code; read it, then give --trust-remote-code --revision COMMIT"
        elif package := missing_package(error):
            message = f"it needs a package: pip install {package}"
        raise UserError(f"{what}: {message}") from error
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _heads(auto_class: Any, table: dict[str, Any]) -> set[str]:
    """Return the names of all classes with such a head."""
    names: set[str] = set()
    for value in table.values():
        names |= {value} if isinstance(value, str) else set(value)
    return names | {heads[auto_class].__name__ for heads in AUTO_CLASSES.values() if auto_class in heads}


def _choose(name: str, config: Any, architectures: list[str], command: str) -> Any:
    """Return the Auto class for a command.

    Raises UserError if the head of the checkpoint does something else.
    """
    needed = {commands: auto for auto, _, commands in KINDS.values()}
    wanted = next(auto for commands, auto in needed.items() if command in commands)
    remote = getattr(config, "auto_map", None) or {}
    if wanted.__name__ in remote:
        return wanted
    for what, (auto_class, table, commands) in KINDS.items():
        if set(architectures) & _heads(auto_class, table) or auto_class.__name__ in remote:
            if command in commands:
                return auto_class
            fits = " or ".join(f"decero {each}" for each in commands)
            raise UserError(f"{name}: this {config.model_type} model {what}; use {fits}")
    head = ", ".join(architectures) or "no head"
    raise UserError(f"{name}: no command works with this {config.model_type} model ({head})")
