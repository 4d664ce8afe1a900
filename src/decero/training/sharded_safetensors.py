"""Store named tensors in safetensors: in one file, or sharded by rows over one file per process.

    model.safetensors        model-0-of-4.safetensors  model-1-of-4.safetensors  ...

Tensors can be read back whole or in any sharding. The header of a sharded file holds the first row of each piece, in
the format of `torch.distributed.checkpoint`, so its `HuggingFaceStorageReader` can read these files, too. torch's own
writer is not used: it chooses the file names, and write errors of one process reach the others as foreign exceptions.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

HEADER, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


def local_rows(tensor: Any) -> tuple[int, int]:
    """Return the first row on this process and the one after the last; all rows for a tensor that is not sharded.

    Shards are split as by torch.chunk: of 5 rows on 4 processes the first two get 2, the third 1, the last none.
    """
    rows = tensor.shape[0] if tensor.dim() else 1
    if not hasattr(tensor, "device_mesh"):
        return 0, rows
    per_process = -(-rows // tensor.device_mesh.size())
    start = min(rows, per_process * tensor.device_mesh.get_local_rank())
    return start, min(rows, start + per_process)


def local_pieces(tensors: Mapping[str, Any], is_main: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the pieces of `tensors` that this process writes, and the header with their offsets.

    Every process writes its own shards. The main process writes the tensors that all processes have.
    """
    pieces, offsets = {}, {}
    for name, tensor in tensors.items():
        start, stop = local_rows(tensor)
        sharded = hasattr(tensor, "to_local")
        if (sharded and start < stop) or (is_main and not sharded):
            pieces[name] = (tensor.to_local() if sharded else tensor).detach().contiguous()
            offsets[name] = {OFFSETS: [start] + [0] * (tensor.dim() - 1) if tensor.dim() else []}
    return pieces, {HEADER: json.dumps(offsets)}


class ShardedTensors:
    """Read tensors from `kind`.safetensors, or from `kind`-R-of-N.safetensors, in a folder.

    Tensors are read on demand. Use as a context manager, which closes the files.
    """

    def __init__(self, folder: Path, kind: str):
        self.folder, self.files = folder, ExitStack()
        self.header: dict[str, str] = {}
        self.found: dict[str, list[tuple[int, int, Any]]] = {}  # first row, row after the last, reader
        for path in sorted(folder.glob(f"{kind}-*-of-*.safetensors")) or [folder / f"{kind}.safetensors"]:
            file = self.files.enter_context(safe_open(path, framework="pt"))
            self.header = (file.metadata() or {}) | self.header
            offsets = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            for name in file.keys():  # noqa: SIM118 (not a dict)
                piece = file.get_slice(name)
                start = offsets[name][OFFSETS][0] if offsets and offsets[name][OFFSETS] else 0
                shape = piece.get_shape()
                self.found.setdefault(name, []).append((start, start + (shape[0] if shape else 1), (file, name)))
        for pieces in self.found.values():
            pieces.sort(key=lambda piece: piece[0])

    def __enter__(self) -> "ShardedTensors":
        return self

    def __exit__(self, *error: Any) -> None:
        self.files.close()

    def shape(self, name: str) -> list[int]:
        """Return the shape of the whole tensor."""
        file, key = self.found[name][0][2]
        first = file.get_slice(key).get_shape()
        return [self.found[name][-1][1], *first[1:]] if first else []

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows `start` to `stop` of a tensor; a scalar is a single row."""
        if not self.shape(name):
            file, key = self.found[name][0][2]
            return file.get_tensor(key)
        pieces = [
            file.get_slice(key)[max(start, first) - first : min(stop, last) - first]
            for first, last, (file, key) in self.found[name]
            if max(start, first) < min(stop, last)
        ]
        if not pieces:
            file, key = self.found[name][0][2]
            return file.get_slice(key)[:0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def like(self, name: str, tensor: Any) -> Tensor:
        """Read the rows of this process, sharded as `tensor` is."""
        return self.rows(name, *local_rows(tensor))

    def whole(self, name: str) -> Tensor:
        """Read the whole tensor."""
        return self.rows(name, 0, self.found[name][-1][1])


def untie(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Split weights into stored ones and names of tied ones. Safetensors does not store shared memory twice."""
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


def named_once(model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """Return each weight once and the other names, by name: all empty shards have the same address."""
    names = {name for named in (model.named_parameters(), model.named_buffers()) for name, _ in named}
    state = model.state_dict()
    return {n: tensor for n, tensor in state.items() if n in names}, [n for n in state if n not in names]


COUNTERS = ("k", "weight_sum", "lr_max")  # of schedule-free optimizers: numbers of a group that change every step


def flatten(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn the state of an optimizer into {"parameter.name": tensor} and {"group-0.name": its number}."""
    flat = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            if value is not None:
                flat[f"{parameter}.{name}"] = torch.as_tensor(value).detach().clone().contiguous()
    for number, group in enumerate(state["param_groups"]):
        for name in group.keys() & set(COUNTERS):
            flat[f"group-{number}.{name}"] = torch.tensor(group[name], dtype=torch.float64)
    return flat


def unflatten(stored: ShardedTensors, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Undo `flatten`. Moments are sharded like their parameter; tensors of other shapes (the step) are not."""
    parameters: list[Any] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key in stored.found:
        index, _, name = key.partition(".")
        if index.startswith("group-"):
            group = groups[int(index.removeprefix("group-"))]
            group[name] = type(group[name])(stored.whole(key).item())
            continue
        parameter = parameters[int(index)]
        if hasattr(parameter, "to_local") and stored.shape(key) == [*parameter.shape]:
            value: Any = torch.empty_like(parameter)
            value.to_local().copy_(stored.like(key, parameter))
        else:
            value = stored.whole(key)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}
