"""Checkpoints without pickle: weights and optimizer in safetensors, the rest in JSON, put in place by one rename.

    checkpoints/step-00000200/
        model.safetensors  optimizer.safetensors  random-0.safetensors  state.json  manifest.json

The manifest holds size and SHA-256 of every other file. It is checked before a checkpoint is used, so that a torn or
changed one is passed over. The data position is the step itself: order, masks and learning rate are functions of it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from decero.errors import UserError

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write `folder/step-N`, N = state["step"]; it appears whole or not at all. Every process must call it.

    Written beside its place, flushed to the disk, renamed. Raises UserError, on all processes and with the checkpoints
    before it intact, when a process cannot write.
    """
    final = folder / f"step-{state['step']:08d}"
    beside = folder / f".{final.name}.tmp"

    def prepare():
        if not folder.parent.is_dir():  # it was there when the run began
            raise FileNotFoundError(2, "the run's folder is gone")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def write():
        save_file(random_state(), beside / f"random-{accelerator.process_index}.safetensors")
        if accelerator.is_main_process:
            weights, tied = _untie(accelerator.unwrap_model(model).state_dict())
            save_file(weights, beside / "model.safetensors", metadata={"tied": json.dumps(tied)})
            save_file(_flatten(optimizer.state_dict()["state"]), beside / "optimizer.safetensors")
            (beside / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    def put_in_place():
        manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in (*beside.iterdir(), beside):
            _flush(path)
        _discard(final)
        beside.rename(final)
        _flush(folder)

    for do, everywhere in ((prepare, False), (write, True), (put_in_place, False)):
        if why := _tried(accelerator, do if everywhere or accelerator.is_main_process else None):
            if accelerator.is_main_process:
                shutil.rmtree(beside, ignore_errors=True)
            kept = newest_valid(folder)
            rest = f"{kept.name} before it is intact" if kept else "there is none before it"
            raise UserError(f"{final}: could not be written: {why}; {rest}; mend that, then --resume")
    return final


def _tried(accelerator: Accelerator, do: Callable[[], None] | None) -> str | None:
    """What kept some process from doing its part, the same on all of them."""
    why = None
    try:
        if do is not None:
            do()
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return next(filter(None, gather_object([why])), None)


def load_checkpoint(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights, optimizer and random states back as they were saved; returns the state. Executes nothing of it.

    Raises UserError when a tensor is missing.
    """
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


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest, or None: every file is there, as long as it was and the same."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, wanted in manifest.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != wanted["bytes"]:
                return f"{name} is torn"
            if _fingerprint(path / name) != wanted:
                return f"{name} is not what was written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def newest_valid(folder: Path, say: Callable[[str], Any] = lambda line: None) -> Path | None:
    """The checkpoint of the highest step that is whole; `say` hears of each that is passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if (why := damage(path)) is None:
            return path
        say(f"{path}: passed over, for {why}")
    return None


def to_resume(folder: Path, accelerator: Accelerator) -> Path | None:
    """What all processes resume from, or None when nothing was saved. The main process looks, and says what it skips.

    Raises UserError when there are checkpoints and none of them is whole.
    """
    found: list[Any] = [None, False]
    if accelerator.is_main_process:
        kept = newest_valid(folder, accelerator.print)
        found = [kept and kept.name, kept is None and any(folder.glob("step-*"))]
    broadcast_object_list(found)
    if found[1]:
        raise UserError(f"{folder}: holds no checkpoint that is whole; delete it to begin the run again")
    return folder / found[0] if found[0] else None


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Delete all but the newest `keep` and the best. Whoever calls this has just seen the newest one written whole."""
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if path != best:
            _discard(path)
    for path in folder.glob(".step-*"):  # what a kill left
        shutil.rmtree(path, ignore_errors=True)


def _discard(path: Path) -> None:
    """Delete a folder so that a kill in the midst of it leaves nothing that looks like a checkpoint."""
    if path.exists():
        gone = path.with_name(f".{path.name}.old")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    """To the disk; a folder as well, for it holds the names. Windows cannot open one."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
