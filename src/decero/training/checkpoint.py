"""Checkpoints without pickle: weights and optimizer in safetensors, the rest in JSON, put in place by one rename.

    checkpoints/step-00000200/
        model.safetensors  optimizer.safetensors  random-0.safetensors  state.json  manifest.json

Where weights are sharded, each process writes its rows of model and optimizer (`stored.py`); whatever wrote a
checkpoint, any number of processes resumes from it, sharded or not. The manifest holds size and SHA-256 of every other
file. It is checked before a checkpoint is used, so that a torn or changed one is passed over. The data position is the
step itself: order, masks and learning rate are functions of it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from decero.errors import UserError
from decero.training.sharded_safetensors import ShardedTensors, local_pieces
from decero.training.sharding import Sharded

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write `folder/step-N`, N = state["step"]; it appears whole or not at all. Every process must call it.

    Written beside its place, flushed to the disk, renamed. Raises UserError, on all processes and with the checkpoints
    before it intact, when a process cannot write.
    """
    final = checkpoint_of(folder, state["step"])
    beside = folder / f".{final.name}.tmp"

    def prepare():
        if not folder.parent.is_dir():  # it was there when the run began
            raise FileNotFoundError(2, "the run's folder is gone")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    is_main, process = accelerator.is_main_process, accelerator.process_index
    written: dict[str, Any] = {}

    def keep(name: str, tensors: dict[str, torch.Tensor], header: dict[str, str] | None = None):
        save_file(tensors, beside / name, metadata=header)
        _flush(beside / name)  # by who wrote it: it may be another machine's memory that it lies in
        written[name] = _fingerprint(beside / name)

    def write():
        keep(f"random-{process}.safetensors", random_state())
        if isinstance(model, Sharded):
            part = f"{process}-of-{accelerator.num_processes}.safetensors"
            weights, tied = _named_once(model.module)
            mine, header = local_pieces(weights, is_main)
            keep(f"model-{part}", mine, header | {"tied": json.dumps(tied)})
            keep(f"optimizer-{part}", *local_pieces(_flatten(optimizer.state_dict()["state"]), is_main))
        elif is_main:
            weights, tied = _untie(accelerator.unwrap_model(model).state_dict())
            keep("model.safetensors", weights, {"tied": json.dumps(tied)})
            keep("optimizer.safetensors", _flatten(optimizer.state_dict()["state"]))
        if is_main:
            (beside / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            _flush(beside / "state.json")
            written["state.json"] = _fingerprint(beside / "state.json")

    def put_in_place():
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in (beside / MANIFEST, beside):
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
        if everywhere:
            manifest = dict(sorted(item for each in gather_object([written]) for item in each.items()))
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
    with ShardedTensors(path, "optimizer") as stored:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": _unflatten(stored, optimizer)})
    mine = path / f"random-{accelerator.process_index}.safetensors"
    if mine.is_file():  # on more processes than before the new ones keep the state they were seeded with
        restore_random_state(load_file(mine))
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load_weights(paths: Path | list[Path], model: nn.Module) -> None:
    """The weights of a checkpoint, or the mean over several, into a model whose tied weights are tied.

    Raises UserError for a missing tensor.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    bare = model.module if isinstance(model, Sharded) else model
    targets: dict[str, Any] = bare.state_dict()
    with ExitStack() as files:
        stored = [files.enter_context(ShardedTensors(path, "model")) for path in paths]
        for path, each in zip(paths, stored, strict=True):
            missing = targets.keys() - each.found.keys() - {*json.loads(each.header["tied"])}
            other = {n for n in each.found.keys() & targets.keys() if each.shape(n) != [*targets[n].shape]}
            if wrong := sorted(missing | other) + sorted(each.found.keys() - targets.keys()):
                raise UserError(f"{path}: does not fit the model of this run at {wrong[0]} (and {len(wrong) - 1} more)")
        for name in stored[0].found:
            target = targets[name]
            tensors = [each.like(name, target) for each in stored]
            value: Any = tensors[-1]
            if value.is_floating_point() and len(paths) > 1:
                value = sum(tensor / len(paths) for tensor in tensors)
            with torch.no_grad():
                (target.to_local() if hasattr(target, "to_local") else target).copy_(value)


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


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return folder / f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """The steps of which there is a checkpoint, damaged ones included. A copy under another name is none."""
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def newest_valid(folder: Path, say: Callable[[str], Any] = lambda line: None) -> Path | None:
    """The checkpoint of the highest step that is whole; `say` hears of each that is passed over."""
    for path in (checkpoint_of(folder, step) for step in reversed(steps_in(folder))):
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
        found = [kept and kept.name, kept is None and bool(steps_in(folder))]
    broadcast_object_list(found)
    if found[1]:
        raise UserError(f"{folder}: holds no checkpoint that is whole; delete it to begin the run again")
    return folder / found[0] if found[0] else None


def prune(folder: Path, keep: Collection[int]) -> None:
    """Delete all checkpoints but those of the steps `keep`, one of which the caller has just seen written whole."""
    for step in steps_in(folder):
        if step not in keep:
            _discard(checkpoint_of(folder, step))
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
    """To the disk; a folder as well, for it holds the names. StepLoader cannot open one."""
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


def _named_once(model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """The same by names: empty shards all lie in the same place."""
    names = {name for named in (model.named_parameters(), model.named_buffers()) for name, _ in named}
    state = model.state_dict()
    return {n: tensor for n, tensor in state.items() if n in names}, [n for n in state if n not in names]


def _flatten(state: dict[int, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """{parameter: {name: value}} to {"parameter.name": tensor}."""
    flat = {}
    for parameter, values in state.items():
        for name, value in values.items():
            if value is not None:
                flat[f"{parameter}.{name}"] = torch.as_tensor(value).detach().clone().contiguous()
    return flat


def _unflatten(stored: ShardedTensors, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """A moment is cut as its parameter is; what has another shape (the step) is whole everywhere."""
    parameters: list[Any] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key in stored.found:
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if hasattr(parameter, "to_local") and stored.shape(key) == [*parameter.shape]:
            value: Any = torch.empty_like(parameter)
            value.to_local().copy_(stored.like(key, parameter))
        else:
            value = stored.whole(key)
        state.setdefault(int(index), {})[name] = value
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
