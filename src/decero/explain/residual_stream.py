"""Find the layers of a model by watching a forward pass: a list of modules, each of which reads what the last wrote."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass
class LayerCall:
    """Hold one call of a module in a list: the stream that it read, what it returned, the stream in that."""

    module: nn.Module
    read: Tensor
    returned: Any
    written: Tensor


class Watch:
    """Hold the calls of all members of module lists in one pass, and what each stack returned.

    stacks: `encoder`, `decoder` -> its module. A model alone is an encoder unless its class can generate.
    """

    def __init__(self, model: PreTrainedModel):
        self.calls: dict[str, list[LayerCall]] = {}
        self.returned: dict[str, Tensor] = {}
        self.stacks: dict[Literal["encoder", "decoder"], nn.Module] = {}
        if model.config.is_encoder_decoder:
            self.stacks = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
        else:
            self.stacks = {"decoder" if model.can_generate() else "encoder": model.base_model}
        self.names = {id(module): name for name, module in model.named_modules()}

    def layers(self, stack: Literal["encoder", "decoder"]) -> list[LayerCall]:
        """Return the calls of the longest outermost list in a stack that is a chain; none if there is none."""
        inside = {id(module) for module in self.stacks[stack].modules() if isinstance(module, nn.ModuleList)}
        names = {self.names[each] for each in inside}
        chains = {name: calls for name, calls in self.calls.items() if name in names and _is_chain(calls)}
        outer = [name for name in chains if not any(name.startswith(f"{other}.") for other in chains)]
        return max((chains[name] for name in outer), key=len, default=[])


@contextmanager
def watching(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Let `watch` see the passes of a model for a while."""
    handles = []
    for name, parent in model.named_modules():
        if isinstance(parent, nn.ModuleList):
            for child in dict.fromkeys(parent):
                handles.append(child.register_forward_hook(_hook(watch, name), with_kwargs=True))
    for name, stack in watch.stacks.items():
        handles.append(stack.register_forward_hook(_keep_returned(watch, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_returned(watch: Watch, name: str) -> Any:
    def keep(module: nn.Module, args: Any, returned: Any) -> None:
        watch.returned[name] = returned[0]

    return keep


def _is_chain(calls: list[LayerCall]) -> bool:
    return all(_same(a.written, b.read) for a, b in pairwise(calls))


def _hook(watch: Watch, name: str) -> Any:
    def keep(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
        read = next((each for each in (*args, *kwargs.values()) if _is_stream(each)), None)
        written = first_tensor(returned)
        if read is not None and written is not None and _is_stream(written):
            watch.calls.setdefault(name, []).append(LayerCall(module, read, returned, written))

    return keep


def first_tensor(returned: Any) -> Tensor | None:
    """Return the stream in what a layer returned: the tensor, or the first of a tuple."""
    if isinstance(returned, tuple | list):
        returned = returned[0] if returned else None
    return returned if isinstance(returned, Tensor) else None


def with_first(returned: Any, stream: Tensor) -> Any:
    """Return the same as a layer did, with another stream."""
    return type(returned)((stream, *returned[1:])) if isinstance(returned, tuple | list) else stream


def _is_stream(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def _same(written: Tensor, read: Tensor) -> bool:
    return written is read or (written.shape == read.shape and torch.equal(written, read))
