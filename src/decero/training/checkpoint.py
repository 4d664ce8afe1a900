"""Checkpoints without pickle: weights and optimizer in safetensors, the rest in JSON, published by one rename.

    checkpoints/step-00000200/
        model.safetensors  optimizer.safetensors  random-0.safetensors  state.json  manifest.json

In a sharded run each process writes its own rows of model and optimizer (`sharded_safetensors.py`). Any number of
processes can resume from any checkpoint, sharded or not. The manifest holds the size and SHA-256 of every other file.
It is checked before a checkpoint is used: incomplete or changed checkpoints are skipped. The step number is the data
position, because order, masks and learning rate are functions of the step.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from decero.errors import UserError, WriteError
from decero.execution.adapters import base_header, check_base, trained_tensors
from decero.execution.random_state import random_state, restore_random_state
from decero.execution.saving import flush as _flush
from decero.files import remove
from decero.training.optimizer import restore_trained
from decero.training.runs import check_claims, on_main
from decero.training.sharded_safetensors import ShardedTensors, flatten, local_pieces, named_once, unflatten, untie
from decero.training.sharding import Sharded

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
) -> Path:  # fmt: skip
    """Write `folder/step-N`, with N = state["step"], completely or not at all. All processes must call it.

    The files go to a temporary folder, are flushed to disk, and one rename publishes them.
    optimizer: None after the last step, which needs none.

    Raises WriteError on all processes when one of them cannot write. Earlier checkpoints stay intact.
    """
    on_main(accelerator, lambda: release_room(folder))
    final = checkpoint_of(folder, state["step"])
    temporary = folder / f".{final.name}.tmp"

    def prepare():
        if not folder.parent.is_dir():  # it existed when the run started
            raise FileNotFoundError(2, "the output folder of the run no longer exists")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    is_main, process = accelerator.is_main_process, accelerator.process_index
    written: dict[str, Any] = {}

    def save(name: str, tensors: dict[str, torch.Tensor], header: dict[str, str] | None = None):
        save_file(tensors, temporary / name, metadata=header)
        _flush(temporary / name)  # the writer must flush: the data may still be in the memory of this machine
        written[name] = _fingerprint(temporary / name)

    def write():
        save(f"random-{process}.safetensors", random_state())
        if isinstance(model, Sharded):
            part = f"{process}-of-{accelerator.num_processes}.safetensors"
            weights, tied = named_once(model.module)
            pieces, header = local_pieces(trained_tensors(model, weights), is_main)
            save(f"model-{part}", pieces, header | base_header(model) | {"tied": json.dumps(tied)})
            if optimizer is not None:
                save(f"optimizer-{part}", *local_pieces(flatten(optimizer.state_dict()), is_main))
        elif is_main:
            weights, tied = untie(trained_tensors(model, accelerator.unwrap_model(model).state_dict()))
            save("model.safetensors", weights, base_header(model) | {"tied": json.dumps(tied)})
            if optimizer is not None:
                save("optimizer.safetensors", flatten(optimizer.state_dict()))
        if is_main:
            (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            _flush(temporary / "state.json")
            written["state.json"] = _fingerprint(temporary / "state.json")

    def publish():
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in (temporary / MANIFEST, temporary):
            _flush(path)
        old = _set_aside(final)
        temporary.rename(final)
        _flush(folder)
        remove(old)

    for action, everywhere in ((prepare, False), (write, True), (publish, False)):
        if why := _first_failure(accelerator, action if everywhere or accelerator.is_main_process else None):
            if accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            previous = newest_valid(folder)
            intact = f"the previous {previous.name} is intact" if previous else "there is no previous checkpoint"
            raise WriteError(f"{final}: cannot write the checkpoint: {why}; {intact}; fix this, then --resume")
        if everywhere:
            manifest = dict(sorted(item for files in gather_object([written]) for item in files.items()))
    return final


def reserve(folder: Path, accelerator: Accelerator, size: int) -> None:
    """Fill a file of `size` bytes. It is deleted just before the checkpoint is written, so that there is room for it.

    File systems that cannot reserve are left alone, and so are macOS and Windows.

    Raises WriteError on all processes when the disk has no room.
    """

    def take() -> None:
        remove(_room(folder))  # perhaps a pipe, which opening would wait for
        with _room(folder).open("xb") as file:
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                        raise

    try:
        on_main(accelerator, take)
    except WriteError as error:
        if accelerator.is_main_process:
            release_room(folder)
        raise WriteError(
            f"{folder.parent}: no room for the {size:,} bytes of the trained weights, so nothing is trained: {error}"
        ) from None


def release_room(folder: Path) -> None:
    """Give back what `reserve` took, unless the folder is another run's by now."""
    with suppress(WriteError):
        check_claims()
        _room(folder).unlink(missing_ok=True)


def _room(folder: Path) -> Path:
    return folder.with_name(".room")


def _first_failure(accelerator: Accelerator, action: Callable[[], None] | None) -> str | None:
    """Run `action` and return the first error of any process, the same on all of them; None if all succeeded."""
    why = None
    try:
        if action is not None:
            action()
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return next(filter(None, gather_object([why])), None)


def load_checkpoint(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restore weights, optimizer and random states; return the saved state. Runs no code from the checkpoint.

    Raises UserError when a tensor is missing.
    """
    load_weights(path, accelerator.unwrap_model(model))
    if any(path.glob("optimizer*")):  # else no step is left to do
        with ShardedTensors(path, "optimizer") as stored:
            optimizer.load_state_dict(unflatten(stored, optimizer))
        restore_trained(optimizer)
    random_file = path / f"random-{accelerator.process_index}.safetensors"
    if random_file.is_file():  # with more processes than before, the new ones keep the state of their seed
        restore_random_state(load_file(random_file))
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load_weights(paths: Path | list[Path], model: nn.Module) -> None:
    """Load the weights of a checkpoint, or the mean of several, into a model whose tied weights are tied.

    Raises UserError for missing and unexpected tensors and for other shapes.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    bare = model.module if isinstance(model, Sharded) else model
    targets: dict[str, Any] = trained_tensors(bare, bare.state_dict())
    with ExitStack() as files:
        stored = [files.enter_context(ShardedTensors(path, "model")) for path in paths]
        for path, tensors in zip(paths, stored, strict=True):
            check_base(path, tensors.header, bare)
            missing = targets.keys() - tensors.found.keys() - {*json.loads(tensors.header["tied"])}
            other_shape = {n for n in tensors.found.keys() & targets.keys() if tensors.shape(n) != [*targets[n].shape]}
            if wrong := sorted(missing | other_shape) + sorted(tensors.found.keys() - targets.keys()):
                named = f"tensor {wrong[0]} (and {len(wrong) - 1} more)"
                raise UserError(f"{path}: does not match the model of this run: {named}")
        for name in stored[0].found:
            target = targets[name]
            values = [tensors.like(name, target) for tensors in stored]
            value: Any = values[-1]
            if value.is_floating_point() and len(paths) > 1:
                value = sum(one / len(paths) for one in values)
            with torch.no_grad():
                (target.to_local() if hasattr(target, "to_local") else target).copy_(value)


def damage(path: Path) -> str | None:
    """Check a checkpoint against its manifest; return what is wrong, or None if all files are unchanged."""
    if not (path / MANIFEST).is_file():  # opening a pipe would wait forever
        return f"{MANIFEST} is missing"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if "state.json" not in manifest:
            return f"{MANIFEST} is incomplete"
        for name, wanted in manifest.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != wanted["bytes"]:
                return f"{name} is incomplete"
            if _fingerprint(path / name) != wanted:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None


def checkpoint_of(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """List the steps that have a checkpoint, damaged ones included. Folders with other names are ignored."""
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def newest_valid(folder: Path, say: Callable[[str], Any] = lambda line: None) -> Path | None:
    """Return the newest intact checkpoint, or None. `say` gets one line for each checkpoint that is skipped."""
    for path in (checkpoint_of(folder, step) for step in reversed(steps_in(folder))):
        if (why := damage(path)) is None:
            return path
        say(f"{path}: skipped: {why}")
    return None


def to_resume(folder: Path, accelerator: Accelerator) -> Path | None:
    """Return the checkpoint that all processes resume from, or None if there is none.

    The main process searches and prints what it skips.

    Raises UserError when there are checkpoints but none is intact.
    """
    found: list[Any] = [None, False]
    if accelerator.is_main_process:
        _put_back(folder)
        newest = newest_valid(folder, accelerator.print)
        found = [newest and newest.name, newest is None and bool(steps_in(folder))]
    broadcast_object_list(found)
    if found[1]:
        raise UserError(f"{folder}: no checkpoint is intact; delete this folder to start the run again")
    return folder / found[0] if found[0] else None


def prune(folder: Path, keep: Collection[int]) -> None:
    """Delete all checkpoints except those of the steps `keep`. The caller has just written one of them."""
    for step in steps_in(folder):
        if step not in keep:
            remove(_set_aside(checkpoint_of(folder, step)))
    for path in folder.glob(".step-*"):  # left over from a killed run
        remove(path)


def _set_aside(path: Path) -> Path:
    """Give a folder, if it is there, a name that no checkpoint has; return that name. The caller removes it."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        remove(old)
        path.rename(old)
    return old


def _put_back(folder: Path) -> None:
    """Restore a checkpoint that `_set_aside` renamed before a kill: it may be the only one."""
    for old in sorted(folder.glob(".step-????????.old")):
        path = folder / old.name.removeprefix(".").removesuffix(".old")
        if not path.exists() and damage(old) is None:
            old.rename(path)


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
