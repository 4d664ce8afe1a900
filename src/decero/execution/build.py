"""Build the model and the tokenizer of a run, from a checkpoint or from a preset with random weights."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from decero.config.model_numbers import check_model_numbers
from decero.config.sections import ModelSection, TokenizerSection
from decero.config.yaml_files import read_yaml
from decero.data.packages import resolve_package_path
from decero.data.tokenizer import check_fits_model, load_tokenizer
from decero.errors import UserError, did_you_mean
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import StrictDataclassError, heads_of
from decero.models import AUTO_CLASSES


def tokenizer_for(tokenizer: TokenizerSection, model: ModelSection, needs: Sequence[str]) -> PreTrainedTokenizerFast:
    """Load the named tokenizer, or the checkpoint's own.

    Raises UserError when there is none, when it lacks one of `needs`, and when its ids differ from the checkpoint's.
    """
    name = tokenizer.name_or_path or model.name_or_path
    if name is None:
        raise UserError(
            "tokenizer.name_or_path is missing: presets have no tokenizer; "
            "train one with recipes/train_tokenizer.py and set its folder"
        )
    pinned = {"revision": model.revision} if model.revision else {}
    found = load_tokenizer(name, needs=needs, **(pinned if name == model.name_or_path else {}))
    if tokenizer.name_or_path and model.name_or_path:
        try:
            own = load_tokenizer(model.name_or_path, **pinned).get_vocab()
        except UserError:
            own = found.get_vocab()  # a checkpoint without a tokenizer cannot contradict one
        if own != found.get_vocab():
            raise UserError(
                f"tokenizer.name_or_path: {tokenizer.name_or_path} gives other ids than the tokenizer of "
                f"{model.name_or_path}; remove this setting"
            )
    return found


def vocab_size_of(section: ModelSection) -> int:
    """Return the vocabulary size of a preset or a checkpoint, without building the model."""
    if section.config is not None:
        fields = read_yaml(section.config) | section.overrides
        return AutoConfig.for_model(fields.pop("model_type"), **fields).vocab_size
    hub = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    path = resolve_package_path(str(section.name_or_path))
    return AutoConfig.from_pretrained(path, **hub).get_text_config().vocab_size


def build_model(
    section: ModelSection,
    auto_class: type,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    seed: int,
    **fields: Any,
) -> PreTrainedModel:
    """Load a checkpoint, or build a preset with random weights drawn from `seed`, in fp32.

    fields: configuration fields that the task decides (num_labels, id2label, problem_type). If the tokenizer's
    `model_max_length` is smaller than `max_length`, it is raised to `max_length`.

    Raises UserError for an unknown field, a checkpoint that cannot be read, a tokenizer with ids beyond the model's
    vocabulary, and a `max_length` beyond its positions.
    """
    overrides = section.overrides | fields
    if section.attn_implementation in ("sdpa", "eager"):  # the device decides on others: `choose_attention`
        overrides["attn_implementation"] = section.attn_implementation
    source = str(section.config or section.name_or_path)
    transformers.set_seed(seed)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no warning about the new head, which is intended
    transformers.logging.disable_progress_bar()
    try:
        if section.config is not None:
            config = read_preset(section.config, overrides, tokenizer)
            _check_shape(config, auto_class)
            check_fits_model(tokenizer, config.vocab_size, source)
            model = auto_class.from_config(config)  # type: ignore[attr-defined]
        else:
            path = resolve_package_path(source)
            hub = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
            config = AutoConfig.from_pretrained(path, **hub)
            _check_fields(config, section.overrides, source)
            vocab_size = section.overrides.get("vocab_size", config.get_text_config().vocab_size)
            check_fits_model(tokenizer, vocab_size, source)
            # Replace a classifier with another number of labels. Any other tensor of the wrong shape is an error.
            new_head = fields.get("num_labels", config.num_labels) != config.num_labels
            model = auto_class.from_pretrained(  # type: ignore[attr-defined]
                path, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=new_head, **overrides, **hub
            )
    except (StrictDataclassError, ValueError, OSError, KeyError, RuntimeError, ImportError, ArithmeticError) as error:
        raise UserError(f"model: {source}: {' '.join(str(error).split())}") from error
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
    positions = positions_of(model)
    if positions is not None and max_length > positions:
        raise UserError(
            f"data.max_length {max_length} exceeds the {positions} positions of {source}; lower it to {positions}"
        )
    tokenizer.model_max_length = max(tokenizer.model_max_length, max_length)
    return model


def read_preset(path: str, overrides: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None = None) -> Any:
    """Read the configuration of a preset, with overrides and with the ids of the tokenizer, if given.

    Raises UserError for an unknown field. Sizes that do not match raise transformers' own errors.
    """
    fields = read_yaml(path)
    model_type = fields.pop("model_type", None)
    known = transformers.CONFIG_MAPPING
    if model_type not in known:
        near = did_you_mean(str(model_type), known)
        raise UserError(f"{path}: unknown model_type {model_type!r}{near}")
    _check_fields(known[model_type](), fields, path)
    check_model_numbers(fields, path)
    _check_fields(known[model_type](), overrides, "model.overrides")
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


def _check_shape(config: PreTrainedConfig, auto_class: type) -> None:
    """Raise ValueError for a preset of the wrong kind. transformers would list every configuration it knows."""
    if not heads_of(auto_class, type(config)):
        ours = [known.model_type for known, heads in AUTO_CLASSES.items() if auto_class in heads]
        raise ValueError(f"no {auto_class.__name__} for model_type {config.model_type}; use {' or '.join(ours)}")


def _check_fields(config, fields: dict[str, Any], source: str) -> None:
    """Raise UserError for unknown fields. transformers ignores them, so a typo would train the wrong model."""
    known = set(config.to_dict()) | set(config.attribute_map) | {"num_labels", "attn_implementation", "problem_type"}
    if config.is_encoder_decoder:
        known.add("decoder_start_token_id")  # T5's configuration has it only if it is set
    for name in fields:
        if name not in known:
            raise UserError(f"{source}: unknown field {name} of {type(config).__name__}{did_you_mean(name, known)}")
