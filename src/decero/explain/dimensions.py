"""Read the true dimensions of a model from its configuration alone: sizes, parameters by part, memory."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from decero.data.packages import resolve_package_path
from decero.errors import UserError, regular_file
from decero.execution.build import known_model_type, read_preset
from decero.execution.model_folder import find, open_checkpoint, read_config
from decero.execution.pretrained import one_line, read_model_config
from decero.execution.transformers_internals import heads_of
from decero.explain.parameter_parts import parts_of, tied_weights
from decero.explain.published import NotPublished, PaperOnly, nearest, published
from decero.explain.stack_sizes import Size, dimensions_of
from decero.files import kind_of
from decero.models import AUTO_CLASSES

# Bytes of a parameter: its weight alone, and in training with AdamW: weight, gradient and two moments.
PRECISIONS: dict[str, tuple[int, int | None]] = {"fp32": (4, 16), "bf16": (2, 8), "int8": (1, None)}
WHOLE_MODELS = (AutoModelForSeq2SeqLM, AutoModelForMaskedLM, AutoModelForCausalLM, AutoModel)
MOST_LAYERS = 10_000
NO_CODE = "give --trust-remote-code --revision COMMIT"


@dataclass(frozen=True)
class Token:
    """One token of a text: its id, its name in the vocabulary, and what it writes."""

    id: int
    token: str
    text: str


@dataclass
class Inspection:
    """Hold what a configuration says about a model.

    name: as the user gave it. source: where the sizes come from. architecture: the class that is counted.
    dimensions: stack (`model`, or `encoder` and `decoder`, or `text` and `vision`) -> size, named as in configurations.
    parameters: all of the class, tied weights once; None where no configuration is published.
    stated: the number that a paper gives instead. base: class and number of the model without a head.
    parts: part -> parameters. tied: (name, counted under this name, parameters).
    """

    name: str
    source: str
    dimensions: dict[str, dict[str, Size]]
    model_type: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    stated: str | None = None
    base: tuple[str, int] | None = None
    parts: dict[str, int] = field(default_factory=dict)
    tied: list[tuple[str, str, int]] = field(default_factory=list)
    tokens: list[Token] | None = None

    def share(self, part: str) -> str:
        """Return the share of a part, such as `18.5 %`."""
        share = 100 * self.parts[part] / sum(self.parts.values())
        return f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"

    @property
    def memory(self) -> dict[str, dict[str, int | None]]:
        """Return precision -> bytes of the weights and in training with AdamW, without activations."""
        if self.parameters is None:
            return {}
        number = self.parameters
        return {
            name: {"weights": number * weight, "training": None if training is None else number * training}
            for name, (weight, training) in PRECISIONS.items()
        }


def inspect_model(
    name: str, text: str | None = None, *, revision: str | None = None, trust_remote_code: bool = False,
    code_revision: str | None = None,
) -> Inspection | NotPublished:  # fmt: skip
    """Read a model's dimensions without its weights. Known names need no network.

    name: a folder, a config.json, a YAML preset, package:NAME/FOLDER, a known name such as gpt2, or a name on the hub.
    text: cut it into tokens with the tokenizer of the folder or of the hub.
    revision, trust_remote_code, code_revision: as for `inference.load`.

    Raises UserError: no such model (with the nearest known name); a configuration that builds no model; no tokenizer
    for the text.
    """
    code = {"revision": revision, "trust_remote_code": trust_remote_code, "code_revision": code_revision}
    known = published(name) if not kind_of(name) and not revision else None
    if isinstance(known, NotPublished):
        return known
    if isinstance(known, PaperOnly):
        if text is not None:
            raise UserError(f"{name}: its tokenizer is not published; leave out --text")
        return Inspection(name, f"{known.source}; no configuration is published", {"model": known.dimensions},
                          stated=known.parameters)  # fmt: skip
    with one_line(name, NO_CODE):
        if known is not None:
            fields = known.fields
            config = transformers.AutoConfig.for_model(known.model_type, **fields)
            config.architectures = [known.architecture]
            source = f"published configuration of {known.name}; {known.source}"
        else:
            config, fields, source = _read(name, code)
        _check_depth(config.to_dict())
        found = _count(name, source, config, trust_remote_code, _unties_head(fields))
    if text is not None:
        found.tokens = _tokens(known.name if known else name, text, code)
    return found


def _read(name: str, code: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any], str]:
    """Read the configuration that a path or a name on the hub stands for; also return its fields and where it was."""
    path, kind = Path(name), kind_of(name)
    if path.suffix in (".yaml", ".yml"):
        config = read_preset(name, {})
        return config, config.to_dict(), name
    if path.suffix == ".json":
        return *_read_json(path), name
    if kind == "a file":
        raise UserError(f"{name}: this is no configuration; give a folder, a config.json or a YAML preset")
    try:
        checkpoint = open_checkpoint(name, weights=False, **code)
    except UserError as error:
        near = "" if kind or ":" in name or published(name) else nearest(name)
        if near:
            raise UserError(f"{name}: unknown model{near}  (no folder, and not found on the hub)") from error
        raise
    config, fields = read_model_config(checkpoint), read_config(checkpoint.folder)
    return config, fields, f"{name.rstrip('/')}/config.json" if kind else f"config.json of {name}"


def _read_json(path: Path) -> tuple[PreTrainedConfig, dict[str, Any]]:
    try:
        fields = json.loads(regular_file(path, 2**24).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: invalid JSON: {error}") from None
    model_type = known_model_type(str(path), fields.get("model_type") if isinstance(fields, dict) else None)
    return transformers.CONFIG_MAPPING[model_type].from_dict(fields), fields


def _unties_head(fields: dict[str, Any]) -> bool:
    """Tell whether a configuration gives the head its own weights. transformers ties the head of every T5."""
    return fields.get("tie_word_embeddings") is False


def _untie_head(model: PreTrainedModel) -> None:
    output, entry = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is entry.weight:
        output.weight = torch.nn.Parameter(torch.empty_like(entry.weight))


def _check_depth(fields: dict[str, Any]) -> None:
    """Raise UserError for a number of layers that no model has: each is built, which would take hours."""
    for name, value in fields.items():
        if isinstance(value, dict):
            _check_depth(value)
        elif str(name).endswith(("layers", "n_layer")) and isinstance(value, int) and value > MOST_LAYERS:
            raise UserError(f"config: {name} is {value}; give at most {MOST_LAYERS:,}")


def _count(
    name: str, source: str, config: PreTrainedConfig, trust_remote_code: bool, untied: bool = False
) -> Inspection:
    """Build the model on the meta device, which needs no memory, and count."""
    with torch.device("meta"):
        model = _build(config, trust_remote_code)
        if untied:
            _untie_head(model)
        base = model.base_model
        if type(model) is not type(base) and heads_of(AutoModel, type(config)):
            base = AutoModel.from_config(config)  # with a pooler, which a head may lack
    number = sum(parameter.numel() for parameter in model.parameters())
    base_number = sum(parameter.numel() for parameter in base.parameters())
    return Inspection(
        name=name, source=source, dimensions=dimensions_of(model), model_type=config.model_type,
        architecture=type(model).__name__, parameters=number, parts=parts_of(model), tied=tied_weights(model),
        base=(type(base).__name__, base_number) if type(base) is not type(model) else None,
    )  # fmt: skip


def _build(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Build the class that the checkpoint was saved with; without a word on it, a language model of this family."""
    for architecture in config.architectures or []:
        ours = {kind.__name__: kind for heads in AUTO_CLASSES.values() for kind in heads.values()}
        kind = ours.get(architecture) or getattr(transformers, architecture, None)
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            return kind._from_config(config)
    code = getattr(config, "auto_map", None) or {}
    for auto in WHOLE_MODELS:
        if heads_of(auto, type(config)) or (trust_remote_code and auto.__name__ in code):
            return auto.from_config(config, trust_remote_code=trust_remote_code)
    raise UserError(f"transformers builds no model of the type {config.model_type}")


def _tokens(name: str, text: str, code: dict[str, Any]) -> list[Token]:
    folder = Path(name).parent if Path(name).suffix in (".json", ".yaml", ".yml") else None
    if folder and not any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab*", "*.model")):
        raise UserError(f"{name}: no tokenizer beside this file; leave out --text, or give a folder with a tokenizer")
    folder = folder or find(resolve_package_path(name), code["revision"], weights=False)
    with one_line(f"{name}: no tokenizer that can be read; leave out --text, or save one there", NO_CODE):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=code["trust_remote_code"])
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(f"{name}: no tokenizer; save the one it was trained with in this folder")
    ids = tokenizer(text, verbose=False)["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    return [Token(i, token, str(tokenizer.decode([i]))) for i, token in zip(ids, names, strict=True)]
