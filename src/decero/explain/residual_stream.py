"""Find the layers of a model by watching a forward pass: a list of modules, each of which reads what the last wrote."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Stack = Literal["encoder", "decoder"]


def reads_target(model: PreTrainedModel) -> bool:
    """Whether a model has a decoder beside an encoder."""
    return bool(model.config.is_encoder_decoder) and "decoder_input_ids" in signature(model.forward).parameters


@dataclass
class LayerCall:
    """Hold one call of a module in a list: the stream that it read, what it returned, the stream in that."""

    module: nn.Module
    read: Tensor
    returned: Any
    written: Tensor


class Watch:
    """Hold the calls of all members of module lists in one pass, and what the modules around them returned.

    alone: what a model with one stack is.
    """

    def __init__(self, model: PreTrainedModel, alone: Stack):
        self.calls: dict[str, list[LayerCall]] = {}
        self.returned: dict[str, Tensor] = {}
        self.stacks: dict[Stack, nn.Module] = {alone: model.base_model}
        if model.config.is_encoder_decoder and hasattr(model, "get_encoder"):
            self.stacks = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
        names = {id(module): name for name, module in model.named_modules()}
        self.inside = {
            stack: [names[id(each)] for each in module.modules() if id(each) in names]
            for stack, module in self.stacks.items()
        }

    def layers(self, stack: Stack) -> list[LayerCall]:
        """Return the calls of the longest outermost list in a stack that is a chain; none if there is none."""
        return self.calls.get(self._list(stack), [])

    def is_last(self, stack: Stack, last: LayerCall) -> bool:
        """Whether the stack returns what its last layer wrote, as it is."""
        path = self._list(stack)
        around = [each for name, each in self.returned.items() if name in self.inside[stack] and _holds(name, path)]
        return all(_same(last.written, each) for each in around if each.shape == last.written.shape)

    def _list(self, stack: Stack) -> str:
        names = [name for name in self.inside[stack] if name in self.calls and _is_chain(self.calls[name])]
        outer = [name for name in names if not any(_holds(other, name) for other in names)]
        return max(outer, key=lambda name: len(self.calls[name]), default="")


def _holds(outer: str, inner: str) -> bool:
    return outer != inner and (not outer or inner.startswith(f"{outer}."))


@contextmanager
def watching(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Let `watch` see the passes of a model for a while."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    handles = []
    for name, parent in lists.items():
        for child in dict.fromkeys(parent):
            handles.append(child.register_forward_hook(_keep_call(watch, name), with_kwargs=True))
    for name, module in model.named_modules():
        if any(_holds(name, each) for each in lists):
            handles.append(module.register_forward_hook(_keep_returned(watch, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_returned(watch: Watch, name: str) -> Any:
    def keep(module: nn.Module, args: Any, returned: Any) -> None:
        found = first_tensor(returned.to_tuple() if hasattr(returned, "to_tuple") else returned)
        if found is not None:
            watch.returned[name] = found

    return keep


def _is_chain(calls: list[LayerCall]) -> bool:
    return all(_same(a.written, b.read) for a, b in pairwise(calls))


def _keep_call(watch: Watch, name: str) -> Any:
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
