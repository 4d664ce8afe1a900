"""Check the files of a model folder: kinds of files, JSON, weights, generation settings and tokenizer."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSemanticSegmentation,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
)

from decero.config.model_numbers import check_model_numbers
from decero.data.tokenizer import load_tokenizer
from decero.errors import UserError, did_you_mean, regular_file, root_line
from decero.execution.image_models import PROCESSOR
from decero.execution.model_folder import ADAPTER, open_checkpoint
from decero.execution.pretrained import load_pretrained
from decero.execution.transformers_internals import heads_of

MOST_BYTES = 2**28  # of a JSON file
MANY = 10_000_000  # a size up to this is built without a look at the weights
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AUTO = (
    AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoModelForCausalLM, AutoModelForMaskedLM,
    AutoModelForPreTraining, AutoModelForTokenClassification, AutoModelForQuestionAnswering, AutoModelForMultipleChoice,
    AutoModelForImageClassification, AutoModelForSemanticSegmentation, AutoModelForObjectDetection,
    AutoModelForMaskedImageModeling, AutoModel,
)  # fmt: skip
NUMBERS = (
    "max_length", "max_new_tokens", "min_length", "num_beams", "temperature", "top_k", "top_p", "length_penalty",
    "repetition_penalty", "no_repeat_ngram_size",
)  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

Shapes = dict[str, list[int]]


class DamagedError(UserError):
    """Tell which file is damaged, and how. check: `files`, or another one if the model can be read in spite of it."""

    def __init__(self, path: Path, what: str, check: str = "files"):
        self.path, self.check, self.what = path, check, " ".join(what.removeprefix(f"{path}: ").split())[:500]
        super().__init__(f"{path}: {self.what}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log and the progress bars of transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


@quiet()
def model_damage(folder: Path) -> list[DamagedError]:
    """Return what is wrong with the model that a run has saved. Opens regular files inside it only and runs no code."""
    found: list[DamagedError] = []
    config: Any = None
    shapes: Shapes | None = None
    try:
        check_kinds(folder)
        config = _read_config(folder)
    except DamagedError as error:
        found.append(error)
    if found and found[0].path != folder / "config.json":
        return found  # a library may open any file, so no other one is looked at
    try:
        if (folder / ADAPTER[0]).exists():
            _check_adapter(folder, config)
        else:
            shapes = _read_shapes(folder)
        if config is not None and shapes is not None:
            _check_sizes(folder, config, shapes)
            _check_weights(folder, config)
    except DamagedError as error:
        found.append(error)
    try:
        _check_generation(folder, config)
    except DamagedError as error:
        found.append(error)
    try:
        reads_pictures = (folder / PROCESSOR).exists()
        if config is not None and not reads_pictures:  # the library reads config.json first
            _check_tokenizer(folder)
    except DamagedError as error:
        found.append(error)
    return found


@quiet()
def check_checkpoint(folder: Path) -> None:
    """Raise DamagedError if a checkpoint to start from cannot be read. Its head and tokenizer may be missing."""
    check_kinds(folder)
    if (folder / ADAPTER[0]).exists():
        _check_adapter(folder, _read_config(folder))
    else:
        _check_sizes(folder, _read_config(folder), _read_shapes(folder))


def check_kinds(folder: Path) -> None:
    """Refuse pipes, devices, sockets and loops of links: a library that opens one may wait forever."""
    if not folder.is_dir():
        raise DamagedError(folder, "this is no folder")
    try:
        for path in sorted(folder.iterdir()):
            if not path.is_dir() or path.suffix in (".json", ".safetensors"):
                regular_file(path, MOST_BYTES if path.suffix == ".json" else 2**63)
    except UserError as error:
        raise DamagedError(path, str(error)) from None
    except OSError as error:
        raise DamagedError(folder, str(error.strerror)) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(path, "no such file") from None
    except OSError as error:
        raise DamagedError(path, str(error.strerror)) from None
    except UnicodeDecodeError:
        raise DamagedError(path, "this is not UTF-8") from None
    except ValueError as error:
        raise DamagedError(path, f"this is no JSON: {error}") from None
    except RecursionError:
        raise DamagedError(path, "this JSON is nested too deeply") from None
    if not isinstance(found, dict):
        raise DamagedError(path, "this is no JSON object")
    return found


def _read_config(folder: Path) -> Any:
    path = folder / "config.json"
    fields = _read_json(path)
    if not isinstance(fields.get("model_type"), str):
        raise DamagedError(path, f"model_type is {fields.get('model_type')!r}, which names no kind of model")
    try:
        check_model_numbers(fields, "config.json")
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises all kinds for values of a wrong type
        raise DamagedError(path, f"it describes no model: {root_line(error)}") from None


def _read_shapes(folder: Path) -> Shapes:
    """Return the shapes of all tensors, from the headers of the weights."""
    names = [WEIGHTS]
    wanted: dict[str, str] = {}
    if not (folder / WEIGHTS).exists() and os.path.lexists(folder / INDEX):
        found = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
            raise DamagedError(folder / INDEX, "weight_map does not say which file has which tensor")
        wanted, names = found, sorted(set(found.values()))
    shapes: Shapes = {}
    home = folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]  # the hub's cache
    for name in names:
        path = folder / name
        if Path(name).name != name or path.resolve().parent not in allowed or path.suffix != ".safetensors":
            raise DamagedError(folder / INDEX, f"it names {name}, which is no safetensors file of this folder")
        try:
            with safe_open(regular_file(path), framework="pt") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        except (UserError, SafetensorError, OSError) as error:
            raise DamagedError(path, f"no complete safetensors file: {str(error).removeprefix(f'{path}: ')}") from None
    if not shapes:
        raise DamagedError(folder / WEIGHTS, "it holds no tensors")
    if lost := sorted(wanted.keys() - shapes.keys()):
        raise DamagedError(folder / INDEX, f"tensor {lost[0]} is in none of the files (and {len(lost) - 1} more)")
    return shapes


def _check_sizes(folder: Path, config: Any, shapes: Shapes) -> None:
    """Compare the sizes in config.json with the weights, because building a model of other sizes may fill memory."""
    path, text = folder / "config.json", config.get_text_config()
    dimensions = {size for shape in shapes.values() for size in shape}
    for name in ("hidden_size", "vocab_size"):
        size = getattr(text, name, None)
        if isinstance(size, int) and size not in dimensions:
            raise DamagedError(path, f"{name} is {size}, but no tensor of the weights has this size")
    for name, size in text.to_dict().items():
        if isinstance(size, int) and name.endswith("layers") and size > len(shapes):
            raise DamagedError(path, f"{name} is {size}, but the weights have only {len(shapes)} tensors")
        if isinstance(size, int) and size > max(MANY, *dimensions) and not name.endswith("length"):
            raise DamagedError(path, f"{name} is {size}, but the largest dimension of the weights is {max(dimensions)}")


def _check_adapter(folder: Path, config: Any) -> None:
    """Merge an adapter into its model, and check that the result is finite."""
    try:
        checkpoint = open_checkpoint(str(folder))
        if config is not None:
            load_pretrained(_auto_of(folder, config), checkpoint, new_head=False)
    except DamagedError:
        raise
    except Exception as error:  # transformers and peft raise all kinds for values of a wrong type
        raise DamagedError(folder / ADAPTER[1], root_line(error)) from None


def _auto_of(folder: Path, config: Any) -> Any:
    """Return the Auto class of the head that config.json names."""
    path, named = folder / "config.json", config.architectures if isinstance(config.architectures, list) else []
    kinds = [auto for auto in AUTO if {head.__name__ for head in heads_of(auto, type(config))} & set(map(str, named))]
    if not kinds:
        raise DamagedError(
            path, f"architectures {config.architectures} names no model with a head of type {config.model_type}"
        )
    return kinds[0]


def _check_weights(folder: Path, config: Any) -> None:
    """Load the weights into the class that config.json names, and check that all are there and finite."""
    path, auto_class = folder / "config.json", _auto_of(folder, config)
    try:
        model, report = auto_class.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # transformers raises all kinds for values of a wrong type
        raise DamagedError(path, f"the model cannot be loaded: {root_line(error)}") from None
    for name, stored, built in sorted(report["mismatched_keys"]):
        raise DamagedError(path, f"tensor {name} has shape {list(stored)}, but config.json makes it {list(built)}")
    if missing := sorted(report["missing_keys"]):
        near = did_you_mean(missing[0], report["unexpected_keys"])
        raise DamagedError(folder / WEIGHTS, f"tensor {missing[0]} is missing (and {len(missing) - 1} more){near}")
    bad = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        what = f"tensor {bad[0]} has values that are not finite (and {len(bad) - 1} more)"
        raise DamagedError(folder / WEIGHTS, what, "weights")


def _check_generation(folder: Path, config: Any) -> None:
    path = folder / "generation_config.json"
    if not os.path.lexists(path):
        return
    fields = _read_json(path)
    try:
        check_model_numbers(fields, "generation_config.json")
        found = GenerationConfig.from_pretrained(folder)
        vocabulary = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
        for name in NUMBERS:
            if not isinstance(getattr(found, name, None), int | float | None):
                raise ValueError(f"{name} is {getattr(found, name)!r}, which is no number")
        for name, token in _tokens(found):
            if not isinstance(token, int) or (vocabulary and not 0 <= token < vocabulary):
                raise ValueError(f"{name} is {token}, but the vocabulary has {vocabulary} tokens")
    except Exception as error:  # transformers raises all kinds for values of a wrong type
        raise DamagedError(path, f"it describes no way to generate: {root_line(error)}") from None


def _check_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if os.path.lexists(folder / name):
            _read_json(folder / name)
    try:
        tokenizer = load_tokenizer(str(folder))
    except UserError as error:
        raise DamagedError(folder, str(error).removeprefix(f"tokenizer {folder}: ")) from None
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float) or not longest > 0:
        raise DamagedError(folder / "tokenizer_config.json", f"model_max_length is {longest!r}; it must be above 0")


def _tokens(found: GenerationConfig) -> Iterator[tuple[str, Any]]:
    for name in TOKENS:
        value = getattr(found, name, None)
        yield from ((name, each) for each in (value if isinstance(value, list) else [value]) if each is not None)
