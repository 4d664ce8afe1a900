"""Load a checked checkpoint into a model, and say which tensors were missing, unused or of another shape."""

import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import transformers
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from decero.errors import UserError, missing_package
from decero.execution.merging import attach, merged
from decero.execution.model_folder import TASK_HEADS, Checkpoint, read_adapter, read_config, read_headers
from decero.execution.transformers_internals import heads_of

SHOWN = 4  # groups of tensors that a line names
_NEW: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


@contextmanager
def one_line(what: str, mend: str = "") -> Iterator[None]:
    """Silence log messages of transformers, and turn any error of it into a UserError of one line.

    mend: how to allow remote code.
    """
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers, its models and hub code raise all kinds, even a bare Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        if mend and "trust_remote_code" in reason:
            reason = f"needs its own Python code; read it, then {mend}"
        elif package := missing_package(error):
            reason = f"it needs a package: pip install {package}"
        raise UserError(f"{what}: {reason}") from error
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def read_model_config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of a checkpoint. Errors are transformers' own.

    That of an adapter names the class that its task needs: peft leaves there the class of the model before.
    """
    config = AutoConfig.from_pretrained(str(checkpoint.folder), **checkpoint.code)
    head = TASK_HEADS.get(str(read_adapter(checkpoint.adapter).get("task_type"))) if checkpoint.adapter else None
    if head and head not in str(config.architectures):
        found = heads_of(getattr(transformers, f"AutoModel{head}"), type(config))
        config.architectures = [each.__name__ for each in found[:1]] or config.architectures
    return config


def load_pretrained(
    auto_class: Any, checkpoint: Checkpoint, *, new_head: bool, new_labels: bool = False, **options: Any
) -> PreTrainedModel:
    """Load a checkpoint into the class that `auto_class` chooses. Say what is new and what is not used.

    new_head: allow a head that the checkpoint does not have to start from random weights.
    new_labels: replace a classifier with another number of labels.
    options: more arguments of `from_pretrained`.

    Raises UserError for a missing tensor outside a new head, and for a tensor of another shape.
    """
    if checkpoint.adapter is not None:
        dtype = options.pop("dtype", None)
        model = merged(load_adapted(auto_class, checkpoint, **options))
        return model if dtype in (None, "auto") else model.to(dtype)
    folder, where = checkpoint.folder, checkpoint.name
    stored = list(read_headers(folder))
    model, report = auto_class.from_pretrained(
        str(folder), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        **checkpoint.code, **options,
    )  # fmt: skip
    kind = type(model).__name__
    saved_by_it = kind in (read_config(folder).get("architectures") or [])
    new = _missing_heads(model, report["missing_keys"]) if new_head and not saved_by_it else set()
    lacking = [name for name in report["missing_keys"] if head_part(model, name) not in new]
    if lacking:
        name = min(lacking, key=[*model.state_dict()].index)
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        other = _prefixed(name.removeprefix(f"{model.base_model_prefix}."), stored)
        raise UserError(f"{where}: tensor {name} is missing{more}; {kind} needs it{other}")
    for name, found, wanted in sorted(report["mismatched_keys"]):
        if not new_labels or not head_part(model, name):
            raise UserError(f"{where}: tensor {name} has shape {[*found]}, but {kind} needs {[*wanted]}")
        new.add(head_part(model, name))
    said = [f"new, with random weights: {', '.join(sorted(new))}"] if new else []
    said += [f"not used: {_summary(report['unexpected_keys'])}"] if report["unexpected_keys"] else []
    if said:
        say(f"{where}: {'; '.join(said)}")
    mark_new(model, new)
    return model


def load_adapted(auto_class: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    """Load the model that an adapter belongs to in fp32, with the adapter's configuration, and put the adapter into it.

    options: as for `load_pretrained`. Returns peft's tuner, whose `model` it is. Raises UserError for other labels or
    sizes than the adapter's, and as `attach` does.
    """
    assert checkpoint.adapter is not None
    config = read_model_config(checkpoint)
    kernel = {name: options.pop(name) for name in ("attn_implementation",) if name in options}
    for name, value in options.items():
        if getattr(config, name, None) != value and name != "pad_token_id":
            first = f"run decero merge {checkpoint.name} OUT, and start from OUT"
            raise UserError(f"{checkpoint.name}: an adapter keeps its {name}; to change it, {first}")
    model, report = auto_class.from_pretrained(
        str(checkpoint.weights), config=config, use_safetensors=True, output_loading_info=True, dtype="float32",
        ignore_mismatched_sizes=True, **checkpoint.code, **kernel,
    )  # fmt: skip
    brought = tuple(f".{name}." for name in read_adapter(checkpoint.adapter).get("modules_to_save") or ())
    for name in [*sorted(report["missing_keys"]), *(each[0] for each in sorted(report["mismatched_keys"]))]:
        if not any(part in f".{name}" for part in brought):
            raise UserError(f"{checkpoint.name}: tensor {name} is in neither the adapter nor its model")
    if model.can_generate() and (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(checkpoint.folder))
    return attach(model, checkpoint.adapter)


def mark_new(model: PreTrainedModel, parts: Collection[str]) -> None:
    """Remember the parts of a model that have weights which its checkpoint does not have."""
    _NEW[model] = frozenset(parts) | new_parts(model)


def new_parts(model: PreTrainedModel) -> frozenset[str]:
    """Return the parts of a model that started from random weights."""
    return _NEW.get(model, frozenset())


@cache  # each line once: a comparison loads a checkpoint many times
def say(line: str) -> None:
    """Print a note on standard error, in the main process."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {line}", file=sys.stderr, flush=True)


def head_part(model: PreTrainedModel, name: str) -> str:
    """Return the part of the head that holds a tensor (classifier, bert.pooler), or "" outside the head.

    The pooler of an encoder belongs to the head, because only classifiers have one. So does the vector of hidden
    patches, because only masked image models have one.
    """
    first, _, rest = name.partition(".")
    base = model.base_model_prefix
    if hasattr(model, base):
        if first != base:
            return first
        before, hidden, _ = name.partition("mask_token")
        return f"{before}{hidden}" if hidden else f"{base}.pooler" if rest.startswith("pooler.") else ""
    output = model.get_output_embeddings()  # T5 has its stacks and its head side by side
    return first if output is not None and getattr(model, first, None) is output else ""


def _missing_heads(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """Return the parts of the head of which no tensor was loaded. Tied tensors do not count."""
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    loaded = {head_part(model, name) for name in model.state_dict() if name not in missing and name not in tied}
    return {head_part(model, name) for name in missing} - loaded - {""}


def _prefixed(name: str, stored: list[str]) -> str:
    """Name the stored tensor that has another prefix than the missing one; torch.compile adds `_orig_mod.`."""
    found = next((each for each in stored if each.endswith(f".{name}")), "")
    return f", and the file has {found}; save the model without this prefix" if found else ""


def _summary(names: Collection[str]) -> str:
    """Count tensors by layer or module: `cls.predictions (5 tensors), bert.encoder.layer.2 (16 tensors)`."""
    groups: Counter[str] = Counter()
    for name in sorted(names):
        layer = re.match(r"(.*?\.\d+)\.", name)
        groups[layer[1] if layer else ".".join(name.split(".")[:-1][:2]) or name] += 1
    shown = [f"{group} ({count} tensor{'s' * (count > 1)})" for group, count in list(groups.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else "")
