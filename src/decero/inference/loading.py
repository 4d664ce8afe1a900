"""Load a decero or stock checkpoint and check that its head fits the command."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForObjectDetection,
    AutoModelForQuestionAnswering,
    AutoModelForSemanticSegmentation,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from decero.data.special_tokens import pad_with
from decero.data.tokenizer import check_fits_model
from decero.errors import UserError
from decero.execution.classification_head import pad_as
from decero.execution.model_folder import Checkpoint, open_checkpoint
from decero.execution.order_proof import takes_target_mapping
from decero.execution.positions import positions_of
from decero.execution.pretrained import load_pretrained, one_line, read_model_config
from decero.execution.pretraining_objective import HYBRID, objective_of, refuse_discriminator
from decero.execution.transformers_internals import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
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
    "finds answers in texts": (
        AutoModelForQuestionAnswering, MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, ("answer",),
    ),
    "continues texts": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ("generate", "score")),
    "fills holes in texts": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES, ("fill", "score")),
    "labels words": (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, ("extract",)),
}  # fmt: skip

# End of the name of a head that reads pictures -> (Auto class, command, what it does); see `image_answers`.
PICTURES: dict[str, tuple[Any, str, str]] = {
    "ForImageClassification": (AutoModelForImageClassification, "classify", "classifies pictures"),
    "ForImageClassificationWithTeacher": (AutoModelForImageClassification, "classify", "classifies pictures"),
    "ForSemanticSegmentation": (AutoModelForSemanticSegmentation, "segment", "classifies the pixels of pictures"),
    "ForObjectDetection": (AutoModelForObjectDetection, "detect", "finds objects in pictures"),
    "ForMaskedImageModeling": (AutoModelForMaskedImageModeling, "explain", "fills in hidden patches of pictures"),
}

HOLES_PADDED = "right"  # side of the padding when a hybrid fills: positions count from the left of a row
TOO_MANY_TOKENS = "fine-tune the model, which adds the rows, or remove the added tokens from its tokenizer"


@dataclass
class Loaded:
    """Hold a model in evaluation mode, its tokenizer, the name that the user gave, and the folder behind it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Checkpoint | None = None
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
    name: str | Path | Loaded, command: str | None, *, revision: str | None = None, trust_remote_code: bool = False,
    bf16: bool = False, code_revision: str | None = None,
) -> Loaded:  # fmt: skip
    """Load a model with the head that `command` needs, onto the GPU if there is one.

    command: `translate`, `summarize`, `generate`, `fill`, `classify`, `extract`, `answer` or `score`. None accepts any
        head, and a checkpoint without one.
    trust_remote_code: allow Python code from the checkpoint; needs `revision`, a commit.
    bf16: convert weights to bfloat16. Otherwise a GPU keeps the stored dtype, and a CPU uses fp32.
    code_revision: NAME/REPO@COMMIT of code that the checkpoint takes from another repository.

    Raises UserError if there is no such model, if its files are damaged or lack a tensor, if its head is of another
    kind (the message names the commands that fit), if it needs remote code and that is not allowed, or if its tokenizer
    is missing or does not fit. The loaded model raises it for outputs that are not finite.
    """
    if isinstance(name, Loaded):
        if revision or trust_remote_code or bf16 or code_revision:
            raise UserError(f"{name.name} is loaded, so bf16, revision and code have no effect; remove them")
        heads = [type(name.model).__name__]
        return name if command is None else _with_head(name, choose_head(name.name, name.model.config, heads, command))
    if not isinstance(name, str | Path):
        raise UserError(f"a {type(name).__name__} is no name; give a folder, a name on the hub, or what `load` returns")
    name = str(name)
    if trust_remote_code and revision is None:
        raise UserError("--trust-remote-code needs --revision: give the commit whose code you trust")
    if code_revision is not None and not trust_remote_code:
        raise UserError("--code-revision has no effect without --trust-remote-code; remove it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored: Any = "auto" if device.type == "cuda" else torch.float32
    with one_line(name, "give --trust-remote-code --revision COMMIT"):
        checkpoint = open_checkpoint(
            name, revision=revision, trust_remote_code=trust_remote_code, code_revision=code_revision
        )
        config = read_model_config(checkpoint)
        heads = config.architectures or []
        if command is None and (found := picture_head(heads)):
            what = f"{found[2]}, and reads no texts; give a picture"
            raise UserError(f"{name}: this {config.model_type} model {what}")
        auto_class = _own_class(config, heads) if command is None else choose_head(name, config, heads, command)
        if _has_two_streams(heads):  # its positions are in fp32
            if bf16:
                raise UserError(f"--bf16: {name}: this {config.model_type} model needs fp32 weights; remove the option")
            stored = torch.float32
        model: Any = load_pretrained(auto_class, checkpoint, new_head=False, dtype=torch.bfloat16 if bf16 else stored)
        model = model.to(device)
    with one_line(f"{name}: tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder), **checkpoint.code)
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(f"{name}: no tokenizer; save the one it was trained with in this folder")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(f"{name}: tokenizer: its model_max_length is {tokenizer.model_max_length!r}, not a number")
    pad_with(tokenizer, model.config.get_text_config().pad_token_id)  # GPT-2 and Llama have no padding token
    if command in ("classify", "extract") or model.config.pad_token_id is None:
        pad_as(model, tokenizer)
    if command == "fill" and objective_of(config) == HYBRID:
        tokenizer.padding_side = HOLES_PADDED
    check_fits_model(tokenizer, model.get_input_embeddings().num_embeddings, name, TOO_MANY_TOKENS)
    model.register_forward_hook(_refuse_nan(name))
    return Loaded(name, model.eval(), tokenizer, checkpoint)


def _with_head(loaded: Loaded, auto_class: Any) -> Loaded:
    """Return a loaded model with the head of an Auto class. Only a hybrid has two heads; they share their weights."""
    config = loaded.model.config
    if objective_of(config) != HYBRID or loaded.model.can_generate() == (auto_class is AutoModelForCausalLM):
        return loaded
    place = loaded.checkpoint
    with torch.device("meta"):
        model = auto_class.from_config(config, **(place.code if place else {}))
    for name, part in loaded.model.named_children():
        setattr(model, name, part)
    if model.can_generate() and place and (place.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(place.folder))
    model.register_forward_hook(_refuse_nan(loaded.name))
    tokenizer = copy.deepcopy(loaded.tokenizer)
    if not model.can_generate():
        tokenizer.padding_side = HOLES_PADDED
    return Loaded(loaded.name, model.eval(), tokenizer, place)


def _refuse_nan(name: str) -> Callable[..., None]:
    """Return a forward hook that raises UserError for logits from which no answer can be read.

    These are NaN, infinity, or -infinity alone. Of a text that is being written, only the last position counts.
    """

    def check(model: PreTrainedModel, inputs: Any, outputs: Any) -> None:
        names = ("start_logits", "logits", "prediction_logits", "last_hidden_state")
        logits = next(each for name in names if (each := getattr(outputs, name, None)) is not None)
        logits = logits[:, -1] if logits.dim() == 3 else logits
        if not logits.amax(dim=-1).isfinite().all():
            raise UserError(f"{name}: the model computes NaN or infinity, which is no answer; use another checkpoint")

    return check


def _heads(auto_class: Any, table: dict[str, Any]) -> set[str]:
    """Return the names of all classes with such a head."""
    names: set[str] = set()
    for value in table.values():
        names |= {value} if isinstance(value, str) else set(value)
    return names | {heads[auto_class].__name__ for heads in AUTO_CLASSES.values() if auto_class in heads}


def commands_of(name: str | Loaded, **loading: Any) -> tuple[str, ...]:
    """Return the commands that work with a checkpoint, such as ("translate", "summarize"). Its weights are not read.

    loading: `revision`, `trust_remote_code`, `code_revision`, as for `load`.

    Raises UserError as `load` does, and when no command works.
    """
    if isinstance(name, Loaded):
        config, architectures, name = name.model.config, [type(name.model).__name__], name.name
    else:
        with one_line(name, "give --trust-remote-code --revision COMMIT"):
            config = read_model_config(open_checkpoint(name, weights=False, **loading))
        architectures = config.architectures or []
    if _chooses_sentences(config, architectures):
        return ("summarize",)
    remote = getattr(config, "auto_map", None) or {}
    for auto_class, table, commands in KINDS.values():
        if set(architectures) & _heads(auto_class, table) or auto_class.__name__ in remote:
            if _has_two_streams(architectures):  # both streams read later tokens, so there is no likelihood
                return ("generate", "fill")
            fills = objective_of(config) == HYBRID and "generate" in commands
            return (*commands, "fill") if fills else commands
    raise UserError(_no_command(name, config, architectures))


def _chooses_sentences(config: Any, architectures: list[str]) -> bool:
    return isinstance(getattr(config, "extractive", None), dict) and "ForTokenClassification" in str(architectures)


def _no_command(name: str, config: Any, architectures: list[str]) -> str:
    head = ", ".join(architectures) or "no head"
    if found := picture_head(architectures):
        return f"{name}: this {config.model_type} model {found[2]}; use decero {found[1]}"
    return (
        f"{name}: no task of decero fits this {config.model_type} model ({head}); try decero explain or decero inspect"
    )


def _has_two_streams(architectures: list[str]) -> bool:
    """Return whether a head is that of XLNet: it fills, too, and transformers lists it among those that continue."""
    names = set(architectures) & _heads(*KINDS["continues texts"][:2])
    heads = (getattr(transformers, name, None) for name in names)
    return any(head is not None and takes_target_mapping(head.forward) for head in heads)


def picture_head(architectures: Iterable[str]) -> tuple[Any, str, str] | None:
    """Return the entry of PICTURES for a checkpoint of these architectures; None for a model of texts."""
    return next((PICTURES[end] for name in architectures for end in PICTURES if str(name).endswith(end)), None)


def _own_class(config: Any, architectures: list[str]) -> Any:
    """Return the class that a checkpoint was saved from: ours, stock or of its own code; else one with no head."""
    remote = getattr(config, "auto_map", None) or {}
    for kind, path in remote.items():
        if kind.startswith("AutoModel") and str(path).rpartition(".")[2] in architectures:
            return getattr(transformers, kind)
    ours = {head.__name__: auto for heads in AUTO_CLASSES.values() for auto, head in heads.items()}
    for name in architectures:
        if (found := ours.get(name) or getattr(transformers, name, None)) is not None:
            return found
    return AutoModel


def choose_head(name: str, config: Any, architectures: list[str], command: str) -> Any:
    """Return the Auto class for a command, of a checkpoint with these architectures.

    Raises UserError if the head of the checkpoint does something else.
    """
    if _chooses_sentences(config, architectures):
        if command == "summarize":
            return AutoModelForTokenClassification
        raise UserError(f"{name}: this {config.model_type} model chooses sentences; use decero summarize")
    if command in ("fill", "score"):
        refuse_discriminator(name, architectures)
    if command == "fill" and _has_two_streams(architectures):
        return AutoModelForCausalLM
    if command == "score" and _has_two_streams(architectures):
        raise UserError(f"{name}: {architectures[0]} reads later tokens, so it gives no likelihood; use another model")
    if objective_of(config) == HYBRID and "LM" in str(architectures) and command in ("fill", "generate", "score"):
        return AutoModelForMaskedLM if command == "fill" else AutoModelForCausalLM
    wanted = next(auto for auto, _, commands in KINDS.values() if command in commands)
    remote = getattr(config, "auto_map", None) or {}
    if wanted.__name__ in remote:
        return wanted
    # The head that was saved comes before others that the code knows.
    kinds = sorted(KINDS.items(), key=lambda kind: not set(architectures) & _heads(*kind[1][:2]))
    for what, (auto_class, table, commands) in kinds:
        if set(architectures) & _heads(auto_class, table) or auto_class.__name__ in remote:
            if command in commands:
                return auto_class
            fits = " or ".join(f"decero {each}" for each in commands)
            raise UserError(f"{name}: this {config.model_type} model {what}; use {fits}")
    if command == "score":
        head = f"this {config.model_type} model ({', '.join(architectures) or 'no head'})"
        raise UserError(f"{name}: {head} has no masked or causal head, so it gives no probabilities; use one that has")
    raise UserError(_no_command(name, config, architectures))
