"""Checkpoints without pickle: weights and optimizer in safetensors, the rest in JSON, put in place by one rename.

    checkpoints/step-00000200/  model.safetensors  optimizer.safetensors  random-0.safetensors  state.json

The data position is the step itself: order, masks and learning rate are functions of it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from decero.errors import UserError


def save_checkpoint(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write `folder/step-N`, N = state["step"]; it appears whole or not at all. Every process must call it."""
    final = folder / f"step-{state['step']:08d}"
    beside = folder / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_file(random_state(), beside / f"random-{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        weights, tied = _untie(accelerator.unwrap_model(model).state_dict())
        save_file(weights, beside / "model.safetensors", metadata={"tied": json.dumps(tied)})
        save_file(_flatten(optimizer.state_dict()["state"]), beside / "optimizer.safetensors")
        (beside / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in beside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights, optimizer and random states back as they were saved; returns the state. Executes nothing of it.

    Raises UserError when a file or a tensor is missing.
    """
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing; delete the folder to resume from the checkpoint before it")
    load_weights(path, accelerator.unwrap_model(model))
    restored = optimizer.state_dict() | {"state": _unflatten(load_file(path / "optimizer.safetensors"))}
    optimizer.load_state_dict(restored)
    mine = path / f"random-{accelerator.process_index}.safetensors"
    if mine.is_file():  # on more processes than before the new ones keep the state they were seeded with
        restore_random_state(load_file(mine))
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load_weights(paths: Path | list[Path], model: nn.Module) -> None:
    """The weights of a checkpoint, or the mean over several, into a model whose tied weights are tied.

    Raises UserError for a missing tensor.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    weights: dict[str, torch.Tensor] = {}
    for path in paths:
        with safe_open(path / "model.safetensors", framework="pt") as file:
            tied = json.loads(file.metadata()["tied"])
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and len(paths) > 1:
                    tensor = tensor / len(paths) + weights.get(name, 0)
                weights[name] = tensor
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = sorted({*missing} - {*tied}) + list(unexpected)
    if wrong:
        raise UserError(f"{paths[0]}: does not fit the model of this run at {wrong[0]} (and {len(wrong) - 1} more)")


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest step."""
    return max(folder.glob("step-*"), default=None)


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Delete all but the newest `keep` and the best."""
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if path != best:
            shutil.rmtree(path)


def _untie(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Safetensors stores each memory once; a tied weight is found again by being tied."""
    seen: set[tuple] = set()
    kept, tied = {}, []
    for name, tensor in weights.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if tensor.numel() and place in seen:
            tied.append(name)
        else:
            kept[name] = tensor.detach().contiguous()
        seen.add(place)
    return kept, tied


def _flatten(state: dict[int, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """{parameter: {name: value}} to {"parameter.name": tensor}."""
    flat = {}
    for parameter, values in state.items():
        for name, value in values.items():
            if value is not None:
                flat[f"{parameter}.{name}"] = torch.as_tensor(value).detach().clone().contiguous()
    return flat


def _unflatten(flat: dict[str, torch.Tensor]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in flat.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = tensor
    return state


def random_state() -> dict[str, torch.Tensor]:
    """Dropout draws from torch; everything else random here is a function of (seed, epoch, example)."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
