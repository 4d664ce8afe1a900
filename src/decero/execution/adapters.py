"""Train low-rank adapters inside a model (LoRA: Hu et al. 2021, section 4.1), with peft.

peft replaces linear layers where they are. The model keeps its class, forward, head and configuration, so that packing,
scored-only heads and generation work as before.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from decero.config.sections import ModelSection
from decero.config.training_run import PeftSection
from decero.data.packages import resolve_package_path
from decero.errors import UserError, did_you_mean
from decero.execution.merging import BASE, PREFIX, base_hash, load_peft, without_warnings
from decero.execution.model_folder import ADAPTER
from decero.execution.pretrained import head_part, new_parts
from decero.execution.saving import save_pretrained
from decero.execution.unwrap import unwrap

TASK_TYPES = {  # Auto class -> peft's name for it
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
}


@dataclass(frozen=True)
class Adapter:
    """Say what of a model is trained: tensors by name. config: peft's. base: the hash of all other weights."""

    config: Any
    names: frozenset[str]
    base: str


def adapter_of(model: nn.Module) -> Adapter | None:
    """Return the adapter that is trained in a model; None if the whole model is trained."""
    return getattr(unwrap(model), "_decero_adapter", None)


def add_adapter(
    model: PreTrainedModel, section: PeftSection, source: ModelSection, auto_class: type, seed: int
) -> PreTrainedModel:
    """Freeze a model, and put an adapter into its linear layers, drawn from `seed`. Returns the model.

    A head that is no vocabulary projection is trained whole, and so is a pooler with new weights.
    source: the checkpoint, whose name the adapter records.

    Raises UserError when peft is missing, for a layer that the model does not have or that cannot be adapted, for a
    checkpoint that is an adapter itself, and for new weights that an adapter would not hold.
    """
    peft, name = load_peft(), str(source.name_or_path)
    folder = Path(resolve_package_path(name))
    if (folder / ADAPTER[0]).is_file():
        raise UserError(f"model.name_or_path: {name} is an adapter itself; run decero merge {name} OUT, and set OUT")
    whole, projection = _trained_whole(model, name), model.get_output_embeddings()
    _check_targets(model, section.target_modules, whole)
    base = base_hash(model, whole)
    task_type = TASK_TYPES.get(auto_class.__name__)
    mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    config = peft.LoraConfig(
        task_type=task_type, r=section.r, lora_alpha=section.alpha, lora_dropout=section.dropout,
        target_modules=section.target_modules, modules_to_save=whole or None, revision=source.revision,
        base_model_name_or_path=str(folder.absolute()) if folder.is_dir() and not name.startswith("package:") else name,
        auto_mapping=None if task_type else mapping,
    )  # fmt: skip
    with without_warnings(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.cast_input_dtype_enabled = False  # to fp32 and, by autocast, back: a copy of each input for backward
    if model.get_output_embeddings() is not projection:
        raise UserError("peft.target_modules: the projection to the vocabulary cannot be adapted; name other layers")
    names = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    model._decero_adapter = Adapter(config, names, base)  # type: ignore[assignment]
    return model


def _trained_whole(model: PreTrainedModel, name: str) -> list[str]:
    """Return the modules that are trained and saved whole: a classifier, and what has new weights."""
    new = new_parts(model)
    parts = {head_part(model, weight) for weight, _ in model.named_parameters()} - {""}
    projects = model.get_output_embeddings() is not None
    outside = {part for part in parts if "." not in part and not projects}
    if held_back := sorted(new if projects else new - parts):
        raise UserError(
            f"peft: {held_back[0]} of {name} has new weights, which an adapter does not hold; train without peft, or "
            "start from a checkpoint that has them"
        )
    return sorted(outside | new)


def _check_targets(model: PreTrainedModel, targets: str | list[str], whole: list[str]) -> None:
    """Raise UserError for a name that belongs to no linear layer of the body."""
    modules = [name for name, _ in model.named_modules() if name]
    output = model.get_output_embeddings()
    fit = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
        and not any(name == part or name.startswith(f"{part}.") for part in whole)
    ]  # fmt: skip
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in fit))
    for target in [] if isinstance(targets, str) else targets:
        if not any(name == target or name.endswith(f".{target}") for name in fit):
            there = any(name == target or name.endswith(f".{target}") for name in modules)
            what = "is no linear layer of the body" if there else "names no layer of this model"
            near = did_you_mean(target, known) or f"; there are {', '.join(known)}"
            raise UserError(f"peft.target_modules: {target} {what}{near}")


def trained_tensors(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a model's tensors that checkpoints hold: those of its adapter, or all."""
    adapter = adapter_of(model)
    return state if adapter is None else {name: value for name, value in state.items() if name in adapter.names}


def base_header(model: nn.Module) -> dict[str, str]:
    """Return the hash of the frozen weights, for the header of a checkpoint; nothing without an adapter."""
    adapter = adapter_of(model)
    return {BASE: adapter.base} if adapter else {}


def check_base(path: Path, header: dict[str, str], model: nn.Module) -> None:
    """Raise UserError when a checkpoint holds an adapter for other frozen weights than the model has."""
    adapter = adapter_of(model)
    if adapter and header.get(BASE) != adapter.base:
        raise UserError(
            f"{path}: holds an adapter for other weights than {adapter.config.base_model_name_or_path} has now; "
            "restore that model, or start a new run"
        )


def save_whole(part: Any, folder: Path) -> None:
    """Save a model or a tokenizer; of a model with an adapter only the adapter, in peft's format, and its config."""
    adapter = adapter_of(part) if isinstance(part, nn.Module) else None
    if adapter is None:
        whole = unwrap(part)
        save_pretrained(whole, folder) if isinstance(whole, PreTrainedModel) else whole.save_pretrained(folder)
        return
    model, peft = unwrap(part), load_peft()
    config = copy.copy(adapter.config)
    config.inference_mode, config.target_modules = True, sorted(config.target_modules)
    config.save_pretrained(folder)
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / ADAPTER[1], metadata={"format": "pt", BASE: adapter.base})
    own = copy.deepcopy(model.config)
    own.architectures, own.dtype = [type(model).__name__], "float32"
    own.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def is_computed(name: str) -> bool:
    """Tell whether a parameter takes part: peft keeps the first weights of a head that it trains whole."""
    return ".original_module." not in name


def costs(model: nn.Module, tokens: int) -> dict[str, int]:
    """Return `num_parameters` and `total_flos` of a run, and `trained_parameters` of an adapter.

    FLOPs as in transformers: 6 x tokens x weights without embeddings; frozen weights have no gradient, so 4 of the 6.
    """
    bare: Any = unwrap(model)
    adapter = adapter_of(bare)
    if adapter is None:
        weights = bare.num_parameters(exclude_embeddings=True)
        return {"total_flos": 6 * tokens * weights, "num_parameters": bare.num_parameters()}
    embeddings = {id(module.weight) for module in bare.modules() if isinstance(module, nn.Embedding)}
    sizes = {name: p.numel() for name, p in bare.named_parameters() if is_computed(name) and id(p) not in embeddings}
    trained = sum(p.numel() for name, p in bare.named_parameters() if name in adapter.names)
    total = sum(p.numel() for name, p in bare.named_parameters() if is_computed(name))
    flos = 4 * tokens * sum(sizes.values()) + 2 * tokens * trained
    return {"total_flos": flos, "num_parameters": total, "trained_parameters": trained}
