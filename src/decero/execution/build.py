"""Build the model and the tokenizer of a run, from a checkpoint or from a preset with random weights."""

import copy
from collections.abc import Sequence
from typing import Any

import psutil
import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from decero.config.model_numbers import check_model_numbers
from decero.config.sections import ModelSection, TokenizerSection
from decero.config.yaml_files import read_yaml
from decero.data.tokenizer import check_fits_model, load_tokenizer
from decero.errors import UserError, did_you_mean
from decero.execution.model_folder import Checkpoint, open_checkpoint
from decero.execution.positions import positions_of
from decero.execution.pretrained import load_pretrained, mark_new, one_line, read_model_config, say
from decero.execution.pretraining_objective import HYBRID, objective_of, refuse_discriminator
from decero.execution.transformers_internals import fills_holes, heads_of
from decero.formatting import byte_size
from decero.models import AUTO_CLASSES

ALLOW_CODE = "set model.trust_remote_code=true and model.revision=COMMIT"


def tokenizer_for(
    tokenizer: TokenizerSection, model: ModelSection, needs: Sequence[str], fast: bool = True
) -> PreTrainedTokenizerFast:
    """Load the named tokenizer, or the checkpoint's own. fast: refuse a slow one.

    Raises UserError when there is none, when it lacks one of `needs`, and when its ids differ from the checkpoint's.
    Tokens may be added.
    """
    name = tokenizer.name_or_path or model.name_or_path
    if name is None:
        raise UserError(
            "tokenizer.name_or_path is missing: presets have no tokenizer; "
            "train one with recipes/train_tokenizer.py and set its folder"
        )
    pinned = {"revision": model.revision} if model.revision else {}
    try:
        found = load_tokenizer(name, needs=needs, fast=fast, **(pinned if name == model.name_or_path else {}))
    except UserError as error:
        if not tokenizer.name_or_path or not model.name_or_path:
            raise
        mend = f"tokenizer.name_or_path=null takes the tokenizer of {model.name_or_path}"
        raise UserError(f"tokenizer.name_or_path: {error}; {mend}") from error
    if tokenizer.name_or_path and model.name_or_path:
        try:
            own = load_tokenizer(model.name_or_path, fast=False, **pinned).get_vocab()
        except UserError:
            own = found.get_vocab()  # a checkpoint without a tokenizer cannot contradict one
        if not _extends(found, own):
            raise UserError(
                f"tokenizer.name_or_path: {tokenizer.name_or_path} gives other ids than the tokenizer of "
                f"{model.name_or_path}; remove this setting"
            )
    return found


def _extends(tokenizer: PreTrainedTokenizerFast, own: dict[str, int]) -> bool:
    """Tell whether a tokenizer gives the tokens of a checkpoint their ids, and has only added tokens besides them."""
    vocab = tokenizer.get_vocab()
    extra = {i for token, i in vocab.items() if token not in own}
    return own.items() <= vocab.items() and extra <= set(tokenizer.added_tokens_decoder)


def checkpoint_of(section: ModelSection, weights: bool = True) -> Checkpoint:
    """Find and check the checkpoint that the settings name."""
    return open_checkpoint(
        str(section.name_or_path), revision=section.revision, trust_remote_code=section.trust_remote_code,
        code_revision=section.code_revision, weights=weights,
    )  # fmt: skip


def config_of(section: ModelSection) -> PreTrainedConfig:
    """Return the configuration of a preset, with overrides, or of a checkpoint. Raises UserError if it is invalid."""
    with one_line(f"model: {section.config or section.name_or_path}", ALLOW_CODE):
        if section.config is not None:
            return read_preset(section.config, section.overrides)
        return read_model_config(checkpoint_of(section, weights=False))


def check_vocab_size(section: ModelSection, vocab_size: int) -> None:
    """Raise UserError when a tokenizer of this size does not fit the vocabulary of a preset or a checkpoint.

    The model is not built.
    """
    config, source = config_of(section), section.config or section.name_or_path
    size = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(size, int):
        raise UserError(f"model: {source}: {config.model_type} has no vocabulary; choose another model")
    if vocab_size > size:
        problem = f"tokenizer.vocab_size {vocab_size} exceeds the vocabulary of {source}, {size}"
        raise UserError(f"{problem}; lower it to {size}")
    _check_ids(config, section.overrides, str(source))


def build_model(
    section: ModelSection,
    auto_class: type,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    seed: int,
    *,
    new_head: bool = True,
    **fields: Any,
) -> PreTrainedModel:
    """Load a checkpoint, or build a preset with random weights drawn from `seed`, in fp32.

    new_head: allow a head with random weights where the checkpoint has none. Any other missing tensor is an error.
    fields: configuration fields that the task decides (num_labels, id2label, problem_type). If the tokenizer's
    `model_max_length` is smaller than `max_length`, it is raised to `max_length`. A checkpoint gets new embedding rows
    for tokens that were added to its tokenizer, and for `model.overrides.vocab_size`.

    Raises UserError for an unknown field, a checkpoint that cannot be read, a tokenizer with ids beyond the model's
    vocabulary, special ids beyond it, and a `max_length` beyond its positions.
    """
    overrides = section.overrides | fields
    if section.attn_implementation in ("sdpa", "eager"):  # the device decides on others: `choose_attention`
        overrides["attn_implementation"] = section.attn_implementation
    source = str(section.config or section.name_or_path)
    transformers.set_seed(seed)
    with one_line(f"model: {source}", ALLOW_CODE):
        if section.config is not None:
            config = read_preset(section.config, overrides, tokenizer)
            check_shape(config, auto_class)
            check_fits_model(tokenizer, config.vocab_size, source)
            _check_ids(config, section.overrides, source)
            check_room(auto_class, config, source)
            model = auto_class.from_config(config)  # type: ignore[attr-defined]
        else:
            model = _load(section, auto_class, tokenizer, new_head, overrides)
    positions = positions_of(model)
    if positions is not None and max_length > positions:
        raise UserError(
            f"data.max_length {max_length} exceeds the {positions} positions of {source}; lower it to {positions}"
        )
    tokenizer.model_max_length = max(tokenizer.model_max_length, max_length)
    return model


def check_room(auto_class: Any, config: PreTrainedConfig, source: str) -> None:
    """Raise UserError when weights in fp32 need more memory than is free. They are counted without any memory."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        parameters = auto_class.from_config(copy.deepcopy(config)).num_parameters()
    free = psutil.virtual_memory().available
    if 4 * parameters > free:
        raise UserError(
            f"{source}: {parameters / 1e9:,.1f} billion parameters need {byte_size(4 * parameters)} in fp32, and "
            f"{byte_size(free)} of memory are free; choose a smaller model (configs/benchmark/scale.yaml computes time "
            "and memory of large ones)"
        )


def _load(
    section: ModelSection, auto_class: type, tokenizer: PreTrainedTokenizerFast, new_head: bool,
    overrides: dict[str, Any],
) -> PreTrainedModel:  # fmt: skip
    """Load the checkpoint, with an embedding row for every token."""
    source = str(section.name_or_path)
    checkpoint = checkpoint_of(section)
    config = read_model_config(checkpoint)
    check_fields(config, section.overrides, source)
    if auto_class is AutoModelForMaskedLM and not new_head:
        refuse_discriminator(source, config.architectures)
    measured = not new_head and objective_of(config) == HYBRID  # such a decoder also fills holes
    if not measured and auto_class.__name__ not in (getattr(config, "auto_map", None) or {}):  # type: ignore[attr-defined]
        check_shape(config, auto_class)
    own = config.get_text_config().vocab_size
    wanted = overrides.pop("vocab_size", None) or max(own, _end_of_added_tokens(tokenizer, own))
    check_fits_model(tokenizer, wanted, source)
    _check_ids(config, section.overrides | {"vocab_size": wanted}, source)
    pad: Any = overrides.get("pad_token_id", getattr(config, "pad_token_id", None))
    later = isinstance(pad, int) and not 0 <= pad < own  # of a row to come; -1 in some Llama checkpoints means none
    model = load_pretrained(
        auto_class, checkpoint, new_head=new_head, dtype=torch.float32,
        new_labels=new_head and overrides.get("num_labels", config.num_labels) != config.num_labels,
        **(overrides | ({"pad_token_id": None} if later else {})),
    )  # fmt: skip
    if wanted != own:
        model.resize_token_embeddings(wanted)
        mark_new(model, ["the embedding"])
        say(f"{source}: the embedding has {wanted} rows instead of {own}")
    if later:
        model.config.pad_token_id = tokenizer.pad_token_id if pad < 0 else pad
    return model


def _end_of_added_tokens(tokenizer: PreTrainedTokenizerFast, size: int) -> int:
    """Return the number of ids if all beyond `size` were added to the tokenizer, else 0: it is another tokenizer."""
    beyond = {i for i in tokenizer.get_vocab().values() if i >= size}
    return max(beyond) + 1 if beyond and beyond <= set(tokenizer.added_tokens_decoder) else 0


def _check_ids(config: PreTrainedConfig, overrides: dict[str, Any], source: str) -> None:
    """Raise UserError for a special id that has no row in the embedding."""
    size = overrides.get("vocab_size", config.get_text_config().vocab_size)
    given = {name: value for name, value in overrides.items() if name.endswith("_token_id")}
    pad = getattr(config, "pad_token_id", None)
    for name, value in ({"pad_token_id": pad} | given).items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and (each >= size or (each < 0 and name in given)):
                mend = f"model.overrides.{name} takes 0 to {size - 1}, or remove it"
                raise UserError(f"{source}: {name} {each} is outside of the vocabulary of {size}; {mend}")


def known_model_type(path: str, model_type: Any) -> str:
    """Return the model_type of a configuration. Raises UserError when it is missing or unknown to transformers."""
    if model_type is None:
        raise UserError(f"{path}: no model_type, so this is no configuration of a model; see configs/model")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        near = did_you_mean(str(model_type), transformers.CONFIG_MAPPING)
        raise UserError(f"{path}: unknown model_type {model_type!r}{near}")
    return model_type


def read_preset(path: str, overrides: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None = None) -> Any:
    """Read the configuration of a preset, with overrides and with the ids of the tokenizer, if given.

    Raises UserError for an unknown field. Sizes that do not match raise transformers' own errors.
    """
    fields = read_yaml(path)
    model_type = known_model_type(path, fields.pop("model_type", None))
    known = transformers.CONFIG_MAPPING
    check_fields(known[model_type](), fields, path)
    check_model_numbers(fields, path)
    check_fields(known[model_type](), overrides, "model.overrides")
    ids = {} if tokenizer is None else _special_ids(fields, tokenizer)
    return AutoConfig.for_model(model_type, **(fields | ids | overrides))


def _special_ids(fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """Return the special ids of the tokenizer; those in a preset belong to the vocabulary it was published with."""
    stated = {f"{name}_token_id": fields.get(f"{name}_token_id") for name in ("pad", "bos", "eos")}
    ids = {
        name: value if getattr(tokenizer, name) is None else getattr(tokenizer, name) for name, value in stated.items()
    }
    start = fields.get("decoder_start_token_id")
    equal = [name for name, value in stated.items() if start is not None and value == start]
    return ids | ({"decoder_start_token_id": ids[equal[0]]} if equal else {})


def check_shape(config: PreTrainedConfig, auto_class: type) -> None:
    """Raise ValueError for a preset of the wrong kind. transformers would list every configuration it knows."""
    masked = auto_class is AutoModelForMaskedLM
    if not (fills_holes(type(config)) if masked else heads_of(auto_class, type(config))):
        ours = [known.model_type for known, heads in AUTO_CLASSES.items() if auto_class in heads]
        ours = [name for name in ours if not masked or name != "decero_decoder"]
        use = " or ".join(ours) or "another model_type of transformers"
        raise ValueError(f"no {auto_class.__name__} for model_type {config.model_type}; use {use}")


def check_fields(config, fields: dict[str, Any], source: str) -> None:
    """Raise UserError for unknown fields. transformers ignores them, so a typo would train the wrong model."""
    known = set(config.to_dict()) | set(config.attribute_map) | {"num_labels", "attn_implementation", "problem_type"}
    if config.is_encoder_decoder:
        known.add("decoder_start_token_id")  # T5's configuration has it only if it is set
    for name in fields:
        if name not in known:
            raise UserError(f"{source}: unknown field {name} of {type(config).__name__}{did_you_mean(name, known)}")
