"""Read a LoRA adapter from its folder and merge it into its model, with peft."""

import warnings
from collections.abc import Collection
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.execution.model_folder import ADAPTER, read_adapter

PREFIX = "base_model.model."  # peft's files name tensors by their place in its wrapper
BASE = "decero_base"  # in the header of the file: the hash of the weights that the adapter was trained on
RESTORE = "copy the adapter again, or train again"  # the fix of a damaged file
MERGE = "copy the adapter again, or merge it with peft"  # the fix of a file of other authors
KEPT = (  # the settings of adapter_config.json that say how an adapter computes
    "r", "lora_alpha", "target_modules", "exclude_modules", "modules_to_save", "fan_in_fan_out", "bias", "use_rslora",
    "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "task_type",
)  # fmt: skip
REFUSED = (
    "layer_replication", "trainable_token_indices", "target_parameters", "megatron_config", "alora_invocation_tokens",
    "arrow_config", "use_bdlora", "use_qalora", "ensure_weight_tying", "lora_bias",
)  # fmt: skip


def load_peft() -> Any:
    """Return the package peft. Raises UserError when it is not installed."""
    try:
        import peft
    except ImportError:
        raise UserError("adapters need the package peft: pip install 'decero[peft]'") from None
    return peft


@contextmanager
def without_warnings():
    """Silence peft's warnings about what it corrects itself, such as GPT-2's transposed matrices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def base_hash(model: PreTrainedModel, left_out: Collection[str] = ()) -> str:
    """Return a hash of the weights in fp32, whatever their names and order. left_out: modules without a share."""
    parts = []
    for name, weight in model.named_parameters():
        if not any(name.startswith(f"{each}.") for each in left_out):
            values = weight.detach().float().cpu().contiguous()
            parts.append(f"{[*values.shape]} {xxhash.xxh3_128_hexdigest(values.numpy().data)}")
    return xxhash.xxh3_128_hexdigest("\n".join(sorted(parts)).encode())


def attach(model: PreTrainedModel, folder: Path) -> Any:
    """Put a saved adapter into its model; return peft's tuner, whose `merge_and_unload` gives the merged model.

    Raises UserError for a kind of LoRA that decero does not read, for layers that the model does not have, for tensors
    that are missing, unexpected, not finite or of another shape, and for a model with other weights than those that
    the adapter was trained on.
    """
    settings, path = read_adapter(folder), folder / ADAPTER[1]
    peft = load_peft()
    for name in REFUSED:
        if settings.get(name):
            raise UserError(f"{folder}: the adapter uses {name}, which decero does not read; merge it with peft")
    config = peft.LoraConfig(**{name: settings[name] for name in KEPT if settings.get(name) is not None})
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        wanted = (file.metadata() or {}).get(BASE)
    mend, embeddings = RESTORE if wanted else MERGE, embedding_names(model)
    whole = [*(config.modules_to_save or ())]
    if wanted and wanted != base_hash(model, [n for n, _ in model.named_modules() if n.endswith(tuple(whole))]):
        raise UserError(
            f"{folder}: {settings['base_model_name_or_path']} has other weights than the model that this adapter was "
            "trained on; restore it, or train again"
        )
    try:
        with without_warnings(), torch.random.fork_rng(devices=[]):
            tuner = peft.LoraModel(model, config, "default")
    except ValueError as error:
        raise UserError(f"{folder}: it does not fit {type(model).__name__}: {error}") from None
    own = peft.get_peft_model_state_dict(tuner.model, save_embedding_layers=False)
    for name in sorted(own.keys() ^ tensors.keys()):
        if name not in own and name.replace(".base_layer.", ".") in embeddings:
            raise UserError(
                f"{path}: it holds embeddings of the model, perhaps for added tokens ({PREFIX}{name}); decero reads "
                "none from an adapter; merge it with peft"
            )
        what = "is missing" if name in own else f"has no place in {type(model).__name__}"
        raise UserError(f"{path}: tensor {PREFIX}{name} {what}; {mend}")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"{path}: tensor {PREFIX}{name} has shape {[*value.shape]}, not {[*own[name].shape]}; {mend}"
            )
        if not value.isfinite().all():
            raise UserError(f"{path}: tensor {PREFIX}{name} holds NaN or infinity; {mend}")
    with without_warnings():
        peft.set_peft_model_state_dict(tuner.model, tensors)
    return tuner


def embedding_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights of a model's input and output embeddings."""
    parts = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    return {f"{name}.weight" for name, module in model.named_modules() if any(module is part for part in parts)}


def merged(tuner: Any) -> PreTrainedModel:
    """Add the product of an adapter's matrices to the weights, and return the plain model."""
    with without_warnings():
        model = tuner.merge_and_unload(safe_merge=True)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)
