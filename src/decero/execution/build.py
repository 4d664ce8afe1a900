"""The model and the tokenizer of a run: a checkpoint's, or a preset's with random weights."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from decero.config.sections import ModelSection, TokenizerSection
from decero.config.yaml_files import read_yaml
from decero.data.packages import resolve_package_path
from decero.data.tokenizer import check_fits_model, load_tokenizer
from decero.errors import UserError, did_you_mean
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import StrictDataclassError, heads_of
from decero.models import AUTO_CLASSES


def tokenizer_for(tokenizer: TokenizerSection, model: ModelSection, needs: Sequence[str]) -> PreTrainedTokenizerFast:
    """The tokenizer that was named, or the checkpoint's own. Raises UserError for none, or one without `needs`."""
    name = tokenizer.name_or_path or model.name_or_path
    if name is None:
        raise UserError(
            "tokenizer.name_or_path is missing: a model from a preset brings no tokenizer; "
            "train one with recipes/train_tokenizer.py and name its folder"
        )
    pinned = {"revision": model.revision} if model.revision else {}
    found = load_tokenizer(name, needs=needs, **(pinned if name == model.name_or_path else {}))
    if tokenizer.name_or_path and model.name_or_path:
        try:
            own = load_tokenizer(model.name_or_path, **pinned).get_vocab()
        except UserError:
            own = found.get_vocab()  # a checkpoint that brings no tokenizer cannot contradict one
        if own != found.get_vocab():
            raise UserError(
                f"tokenizer: {tokenizer.name_or_path} does not match {model.name_or_path}, whose own gives other ids; "
                "leave tokenizer.name_or_path out"
            )
    return found


def vocab_size_of(section: ModelSection) -> int:
    """The vocabulary of a preset or a checkpoint, without building it."""
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
    """A checkpoint's model, or a preset's with random weights drawn from `seed`, in fp32.

    fields: configuration fields that the task decides (num_labels, id2label, problem_type). A tokenizer that says it
    reads less than `max_length`, as one of shorter texts does, says `max_length` from here on.

    Raises UserError: an unknown field, a checkpoint that cannot be read, a tokenizer with ids beyond the model's
    vocabulary, `max_length` beyond its positions.
    """
    overrides = section.overrides | fields
    asked = section.attn_implementation
    if asked in ("sdpa", "eager"):
        overrides["attn_implementation"] = asked
    where = str(section.config or section.name_or_path)
    transformers.set_seed(seed)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a new head is what is wanted, not news
    transformers.logging.disable_progress_bar()
    try:
        if section.config is not None:
            config = read_preset(section.config, overrides, tokenizer)
            _check_shape(config, auto_class)
            check_fits_model(tokenizer, config.vocab_size, where)
            model = auto_class.from_config(config)  # type: ignore[attr-defined]
        else:
            path = resolve_package_path(where)
            hub = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
            config = AutoConfig.from_pretrained(path, **hub)
            _check_fields(config, section.overrides, where)
            check_fits_model(tokenizer, section.overrides.get("vocab_size", config.get_text_config().vocab_size), where)
            # A classifier for other labels than ours is replaced; any other tensor that does not fit is an error.
            new_head = fields.get("num_labels", config.num_labels) != config.num_labels
            model = auto_class.from_pretrained(  # type: ignore[attr-defined]
                path, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=new_head, **overrides, **hub
            )
    except (StrictDataclassError, ValueError, OSError, KeyError, RuntimeError, ImportError, ArithmeticError) as error:
        raise UserError(f"model: {where}: {' '.join(str(error).split())}") from error
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
    positions = positions_of(model)
    if positions is not None and max_length > positions:
        raise UserError(
            f"data.max_length {max_length} exceeds the {positions} positions of {where}; lower it to {positions}"
        )
    tokenizer.model_max_length = max(tokenizer.model_max_length, max_length)
    if asked is not None:
        model.attention_asked = asked  # whether it can be had is for the device to say: `choose_attention`
    return model


def read_preset(path: str, overrides: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None = None) -> Any:
    """The configuration that a preset describes, with fields changed and, where there is one, a tokenizer's ids.

    Raises UserError for a field that its architecture does not have; sizes that do not fit raise transformers' own.
    """
    fields = read_yaml(path)
    model_type = fields.pop("model_type", None)
    known = transformers.CONFIG_MAPPING
    if model_type not in known:
        near = did_you_mean(str(model_type), known)
        raise UserError(f"{path}: model_type {model_type!r} is none that transformers knows{near}")
    _check_fields(known[model_type](), fields, path)
    _check_fields(known[model_type](), overrides, "model.overrides")
    ids = {} if tokenizer is None else _special_ids(fields, tokenizer)
    return AutoConfig.for_model(model_type, **(fields | ids | overrides))


def _special_ids(fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """The ids that the tokenizer has; those that a preset states belong to the vocabulary it was published with."""
    stated = {f"{name}_token_id": fields.get(f"{name}_token_id") for name in ("pad", "bos", "eos")}
    ids = {
        name: value if getattr(tokenizer, name) is None else getattr(tokenizer, name) for name, value in stated.items()
    }
    start = fields.get("decoder_start_token_id")
    same = [name for name, value in stated.items() if start is not None and value == start]
    return ids | ({"decoder_start_token_id": ids[same[0]]} if same else {})


def _check_shape(config: PreTrainedConfig, auto_class: type) -> None:
    """Raise ValueError for a preset of another shape; transformers would list every configuration it knows."""
    if not heads_of(auto_class, type(config)):
        ours = [known.model_type for known, heads in AUTO_CLASSES.items() if auto_class in heads]
        raise ValueError(f"no {auto_class.__name__} for model_type {config.model_type}; take a {' or '.join(ours)}")


def _check_fields(config, fields: dict[str, Any], where: str) -> None:
    """transformers accepts unknown fields in silence; a misspelt one would train another model than was meant."""
    known = set(config.to_dict()) | set(config.attribute_map) | {"num_labels", "attn_implementation", "problem_type"}
    if config.is_encoder_decoder:
        known.add("decoder_start_token_id")  # T5's configuration has it only when it is given
    for name in fields:
        if name not in known:
            raise UserError(f"{where}: {name} is no field of {type(config).__name__}{did_you_mean(name, known)}")
