"""Named tensors in safetensors: whole in one file, or cut by rows into one file a process, and read back in any cut.

    model.safetensors        model-0-of-4.safetensors  model-1-of-4.safetensors  ...

The header of a cut file says at which row each piece begins, in the words of `torch.distributed.checkpoint`, whose
`HuggingFaceStorageReader` reads these files as well. torch's own writer is not used: it chooses the names of its files,
and a process that cannot write ends in an exception that is none of ours on all of them.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

HEADER, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


def local_rows(tensor: Any) -> tuple[int, int]:
    """The first row of a tensor that lies on this process, and the one after the last: all of them, or a shard's.

    Shards are cut as torch.chunk cuts: of 5 rows on 4 processes the first two have 2, the third 1, the last none.
    """
    rows = tensor.shape[0] if tensor.dim() else 1
    if not hasattr(tensor, "device_mesh"):
        return 0, rows
    each = -(-rows // tensor.device_mesh.size())
    start = min(rows, each * tensor.device_mesh.get_local_rank())
    return start, min(rows, start + each)


def local_pieces(tensors: Mapping[str, Any], is_main: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What this process has to write of `tensors`, and the header that says where it belongs.

    Shards are everybody's; what every process has is left to the main one.
    """
    kept, offsets = {}, {}
    for name, tensor in tensors.items():
        start, stop = local_rows(tensor)
        sharded = hasattr(tensor, "to_local")
        if (sharded and start < stop) or (is_main and not sharded):
            kept[name] = (tensor.to_local() if sharded else tensor).detach().contiguous()
            offsets[name] = {OFFSETS: [start] + [0] * (tensor.dim() - 1) if tensor.dim() else []}
    return kept, {HEADER: json.dumps(offsets)}


class ShardedTensors:
    """The tensors that a folder holds under `kind`.safetensors, or under `kind`-R-of-N.safetensors.

    Nothing is read before it is asked for. Use as a context: the files are closed at its end.
    """

    def __init__(self, folder: Path, kind: str):
        self.folder, self.files = folder, ExitStack()
        self.header: dict[str, str] = {}
        self.found: dict[str, list[tuple[int, int, Any]]] = {}  # first row, row after the last, what reads them
        for path in sorted(folder.glob(f"{kind}-*-of-*.safetensors")) or [folder / f"{kind}.safetensors"]:
            file = self.files.enter_context(safe_open(path, framework="pt"))
            self.header = (file.metadata() or {}) | self.header
            offsets = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            for name in file.keys():  # noqa: SIM118 (not a dict)
                piece = file.get_slice(name)
                start = offsets[name][OFFSETS][0] if offsets and offsets[name][OFFSETS] else 0
                shape = piece.get_shape()
                self.found.setdefault(name, []).append((start, start + (shape[0] if shape else 1), (file, name)))
        for each in self.found.values():
            each.sort(key=lambda piece: piece[0])

    def __enter__(self) -> "ShardedTensors":
        return self

    def __exit__(self, *ended: Any) -> None:
        self.files.close()

    def shape(self, name: str) -> list[int]:
        """The shape of the whole tensor."""
        file, key = self.found[name][0][2]
        first = file.get_slice(key).get_shape()
        return [self.found[name][-1][1], *first[1:]] if first else []

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor; one without dimensions is a single row."""
        if not self.shape(name):
            file, key = self.found[name][0][2]
            return file.get_tensor(key)
        there = [
            file.get_slice(key)[max(start, first) - first : min(stop, last) - first]
            for first, last, (file, key) in self.found[name]
            if max(start, first) < min(stop, last)
        ]
        if not there:
            file, key = self.found[name][0][2]
            return file.get_slice(key)[:0]
        return there[0] if len(there) == 1 else torch.cat(there)

    def like(self, name: str, tensor: Any) -> Tensor:
        """What lies on this process of a tensor that is cut as `tensor` is."""
        return self.rows(name, *local_rows(tensor))

    def whole(self, name: str) -> Tensor:
        """All of a tensor."""
        return self.rows(name, 0, self.found[name][-1][1])
