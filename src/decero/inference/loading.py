"""A checkpoint with its tokenizer, ours or stock, told by what its head can do."""

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
from decero.data.tokenizer import check_fits_model
from decero.errors import UserError, did_you_mean
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from decero.models import AUTO_CLASSES

# What a head does -> its Auto class, transformers' table of such heads, and the commands for it. The first that fits
# counts: transformers lists BartForConditionalGeneration among masked language models, too.
KINDS: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "writes an answer to a text": (
        AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, ("translate", "summarize"),
    ),
    "classifies texts": (
        AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        ("classify",),
    ),
    "writes on from a text": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ("generate",)),
    "fills holes in a text": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES, ("fill",)),
}  # fmt: skip


@dataclass
class Loaded:
    """A model in evaluation mode, its tokenizer, and the name it was asked for by."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generation_checked: bool = False

    def positions(self) -> int | None:
        """How many tokens a source may have, special ones included; None is no limit.

        The smaller of what the model's configuration and its tokenizer say: T5's distances know no end, its tokenizer
        does.
        """
        own = positions_of(self.model) or getattr(self.model.config.get_text_config(), "n_positions", None)
        limits = [limit for limit in (own, self.tokenizer.model_max_length) if limit and 0 < limit < 10**9]
        return min(limits, default=None)


def load(
    name: str | Path | Loaded, command: str, *, revision: str | None = None, trust_remote_code: bool = False,
    bf16: bool = False,
) -> Loaded:  # fmt: skip
    """The model of `name` with the head that `command` (`translate`, `fill` ...) needs, on the GPU where there is one.

    trust_remote_code runs Python that comes with the checkpoint, and only of a named `revision`. bf16: weights in
    bfloat16; as they are stored on a GPU otherwise, fp32 on a CPU.

    Raises UserError: nothing there, a head of another kind (it names the commands that fit), remote code not allowed,
    a tokenizer that is missing or has ids beyond the vocabulary.
    """
    if isinstance(name, Loaded):
        _choose(name.name, name.model.config, [type(name.model).__name__], command)
        return name
    name = str(name)
    if trust_remote_code and revision is None:
        raise UserError("--trust-remote-code runs the code of a commit that you have read: name it with --revision")
    path = resolve_package_path(name)
    beside = [each.name for each in Path(path).parent.glob("*/")] if "/" in path and not Path(path).exists() else []
    if near := did_you_mean(Path(path).name, beside, f"{Path(path).parent}/"):
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
    tokenizer = _quietly(f"{name}: its tokenizer", lambda: AutoTokenizer.from_pretrained(path, **hub))
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(f"{name}: brings no tokenizer; save the one it was trained with there")
    if tokenizer.pad_token is None:  # GPT-2 and Llama have none; what is padded is masked
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:  # by which a classifier of that kind tells where a text ends
        model.config.pad_token_id = tokenizer.pad_token_id
    check_fits_model(tokenizer, model.get_input_embeddings().num_embeddings, name)
    return Loaded(name, model.eval(), tokenizer)


def _quietly(what: str, build: Callable[[], Any]) -> Any:
    """What `build` gives; whatever transformers raises, in one line. It tells of weights it expects or not, too."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return build()
    except Exception as error:  # everything may be raised here, down to a bare Exception
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            said = "needs Python code of its own; read it, then give --trust-remote-code --revision COMMIT"
        raise UserError(f"{what}: {said}") from error
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _heads(auto_class: Any, table: dict[str, Any]) -> set[str]:
    """Names of the classes with such a head."""
    names: set[str] = set()
    for value in table.values():
        names |= {value} if isinstance(value, str) else set(value)
    return names | {heads[auto_class].__name__ for heads in AUTO_CLASSES.values() if auto_class in heads}


def _choose(name: str, config: Any, architectures: list[str], command: str) -> Any:
    """The Auto class for a command. Raises UserError for a checkpoint whose head does something else."""
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
            raise UserError(f"{name}: is a {config.model_type} that {what}: use {fits}")
    head = ", ".join(architectures) or "no head"
    raise UserError(f"{name}: is a {config.model_type} with {head}, which neither writes, fills nor classifies")
