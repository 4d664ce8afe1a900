"""Convert tensors by the lines of a table, in both directions.

A line is `ours stock [form]`. `{i}` is the layer number, `{any}` the rest of a name. A line names a module; it covers
its `.weight` and `.bias`.
`{q,k,v}_proj` on our side are consecutive slices of one stock tensor.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from decero.errors import UserError

# Layouts of a stock tensor: (ours -> stock, stock -> ours).
FORMS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda t: t, lambda t: t),
    "transposed": (lambda t: t.T if t.dim() == 2 else t, lambda t: t.T if t.dim() == 2 else t),  # GPT-2's Conv1D
    "row": (lambda t: t[None], lambda t: t[0]),
    "pointwise": (  # a 1 x 1 convolution is one matrix
        lambda t: t[..., None, None] if t.dim() == 2 else t,
        lambda t: t[..., 0, 0] if t.dim() == 4 else t,
    ),
}


def translate(
    lines: Iterable[Sequence[str]],
    tensors: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    *,
    to_stock: bool,
) -> dict[str, torch.Tensor]:
    """Convert tensors (or gradients) of one side to the names and layout of the other: all of `wanted`.

    A line whose other side is not in `wanted` is for other models of the family. For tensors that share memory, such
    as tied embeddings, one name is enough.

    Raises UserError that names a tensor without counterpart, a missing one, or one with a wrong shape or two values.
    """
    out: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for ours, stock, (store, restore) in _moves(lines, list(tensors), to_stock):
        sources, targets = (ours, [stock]) if to_stock else ([stock], ours)
        if not all(name in wanted for name in targets):
            continue
        whole = torch.cat([tensors[name] for name in sources]) if len(sources) > 1 else tensors[sources[0]]
        parts = [store(whole)] if to_stock else restore(whole).chunk(len(ours))
        for name, part in zip(targets, parts, strict=True):
            if part.shape != wanted[name].shape:
                raise UserError(f"tensor {name} has shape {[*part.shape]} instead of {[*wanted[name].shape]}")
            if name in out and not torch.equal(out[name], part):
                raise UserError(f"tensor {name} has two values; one is that of {', '.join(sources)}")
            out[name] = part
        used |= set(sources)
    for name, twins in _twins(tensors).items():
        if not twins & used:
            raise UserError(f"tensor {name} has no counterpart in {'the stock model' if to_stock else 'decero'}")
    for name, twins in _twins(wanted).items():
        given = sorted(twins & out.keys())
        if not given:
            raise UserError(f"tensor {name} is missing")
        if not all(torch.equal(out[given[0]], out[other]) for other in given[1:]):
            raise UserError(f"tensors {', '.join(given)} are shared in the target model, but have different values")
    return out


def _moves(lines: Iterable[Sequence[str]], names: list[str], from_ours: bool) -> Iterator[tuple]:
    """Yield each line for each layer and leaf in `names`: our names, the stock name, the form."""
    for ours, stock, *form in lines:
        slices = _slices(ours)
        pattern = re.escape(slices[0] if from_ours else stock).replace(r"\{i\}", r"(?P<i>\d+)")
        pattern = pattern.replace(r"\{any\}", "(?P<i>.+?)")
        for match in filter(None, (re.fullmatch(pattern + r"(?P<leaf>\.weight|\.bias)?", name) for name in names)):
            layer, leaf = match.groupdict().get("i", ""), match["leaf"] or ""
            *filled, last = [re.sub(r"\{i\}|\{any\}", layer, name) + leaf for name in (*slices, stock)]
            yield filled, last, FORMS[form[0] if form else "same"]


def _slices(name: str) -> list[str]:
    """Expand `{q,k,v}_proj` to q_proj, k_proj, v_proj."""
    braces = re.search(r"\{(\w+(?:,\w+)+)\}", name)
    return [name.replace(braces[0], part) for part in braces[1].split(",")] if braces else [name]


def _twins(tensors: Mapping[str, torch.Tensor]) -> dict[str, set[str]]:
    """Map each tensor's name to all names of the same memory, its own included."""
    sharing: dict[tuple, set[str]] = {}
    for name, tensor in tensors.items():
        sharing.setdefault((tensor.data_ptr(), tensor.shape), set()).add(name)
    return {name: sharing[tensor.data_ptr(), tensor.shape] for name, tensor in tensors.items()}
