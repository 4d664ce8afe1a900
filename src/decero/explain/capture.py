"""Take the attention weights out of a forward pass.

Found, not adapted. A family that asks transformers for an attention kernel by name gets one of ours, which calls the
eager function of the family's own file and keeps what it returns. A family with code of its own is asked for
`output_attentions`.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from decero.execution.transformers_internals import attending_with, register_attention
from decero.explain.recording import Kind

KERNEL = "decero_explain"
SHORT = 6  # tokens of the pass that only counts layers
PLAIN = (str, int, float)  # a bool is an int
FIELDS = ("encoder_attentions", "decoder_attentions", "cross_attentions", "attentions")


@dataclass
class AttentionCall:
    """Hold one call of an attention function.

    value: (1, heads or groups, keys, head size). mix: (1, queries, heads, head size). weights: (1, heads, queries,
    keys). projection: the module that read the mix, if it was looked for and found.
    """

    value: Tensor
    mix: Tensor
    weights: Tensor
    projection: nn.Module | None = None


@dataclass
class _Tap:
    """Keep the calls of one pass: all, or those with a number in `wanted`."""

    wanted: Collection[int] | None = None
    calls: dict[int, AttentionCall] = field(default_factory=dict)
    count: int = 0
    last: AttentionCall | None = None
    change: Callable[[int, Tensor], Tensor] | None = None


_TAP: ContextVar[_Tap | None] = ContextVar("decero_explain", default=None)


class NoEagerFunctionError(Exception):
    """Say that the file of an attention module has no eager function."""


def _eager_function(module: nn.Module) -> Callable[..., Any]:
    """Return the eager attention of a family: a function of the file that defines its attention module."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise NoEagerFunctionError(type(module).__name__)


def _kept_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    mix, weights = _eager_function(module)(module, query, key, value, *args, **kwargs)
    if (tap := _TAP.get()) is not None:
        mix = mix if tap.change is None else tap.change(tap.count, mix)
        if tap.wanted is None or tap.count in tap.wanted:
            tap.calls[tap.count] = tap.last = AttentionCall(value, mix, weights)
        else:
            tap.last = None
        tap.count += 1
    return mix, weights


register_attention(KERNEL, _kept_attention, eager=True)


@contextmanager
def _tapping(tap: _Tap) -> Iterator[None]:
    token = _TAP.set(tap)
    try:
        yield
    finally:
        _TAP.reset(token)


@contextmanager
def editing(model: PreTrainedModel, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Let `change(number of the attention call, mix)` replace what each call hands to its output projection.

    mix: (batch, queries, heads, head size). For a family whose order has calls; its pass runs inside this context.
    """
    with attending_with(model, KERNEL), _tapping(_Tap(wanted=(), change=change)):
        yield


@contextmanager
def _seeing_projections(model: nn.Module, tap: _Tap) -> Iterator[None]:
    """Find the output projection of each call by asking: the first module with a matrix that reads the mix."""

    def ask(module: nn.Module, args: tuple[Any, ...]) -> None:
        call = tap.last
        if call is None or call.projection is not None or not args or not isinstance(args[0], Tensor):
            return
        if args[0].numel() == call.mix.numel() and torch.equal(args[0].flatten(), call.mix.flatten()):
            call.projection = module

    matrices = [each for each in model.modules() if getattr(getattr(each, "weight", None), "ndim", 0) == 2]
    handles = [each.register_forward_pre_hook(ask) for each in matrices]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Give each module its settings, mode, parts and hooks back afterwards.

    BigBird changes its attention for good when it reads a short text. transformers leaves hooks, and marks that it did.
    """
    before = [(module, _plain(module), {**module._modules}, set(module._forward_hooks)) for module in model.modules()]
    try:
        yield
    finally:
        for module, settings, parts, hooks in before:
            for name in _plain(module).keys() - settings.keys():
                delattr(module, name)
            vars(module).update(settings)
            module._modules.clear()
            module._modules.update(parts)
            for number in set(module._forward_hooks) - hooks:
                del module._forward_hooks[number]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Compute no gradients of weights inside."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, PLAIN)}


def run(model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Any:
    """Do one forward pass without gradients and without a cache."""
    if "use_cache" in inspect.signature(model.forward).parameters:
        options["use_cache"] = False
    with torch.no_grad():
        return model(**inputs, **options, return_dict=True)


@dataclass
class CallOrder:
    """Say how a family shows its attention.

    calls: kind -> number of the attention call of each layer; None for a family that is asked for output_attentions.
    layers, heads: how many there are, by kind.
    """

    calls: dict[Kind, list[int]] | None
    layers: dict[Kind, int]
    heads: dict[Kind, int]


def call_order(model: PreTrainedModel, inputs: dict[str, Tensor]) -> CallOrder | None:
    """Learn from a short pass which attention call is which layer. None means that the family shows no attention."""
    short = {name: _shortened(tensor) for name, tensor in inputs.items()}
    tap = _Tap()
    try:
        with unchanged(model), _tapping(tap), attending_with(model, KERNEL):
            outputs = run(model, short, output_attentions=True)
    except NoEagerFunctionError:
        outputs = None
    shown = {} if outputs is None else by_kind(outputs)
    places = {call.weights.data_ptr(): number for number, call in tap.calls.items() if call.weights is not None}
    calls = {kind: [places.get(_pointer(each), -1) for each in layers] for kind, layers in shown.items()}
    through_interface = bool(calls) and all(min(numbers) >= 0 for numbers in calls.values())
    if not through_interface:
        with unchanged(model), attending_with(model, "eager"):
            shown = by_kind(run(model, short, output_attentions=True))
    if not shown:
        return None
    heads = {kind: _heads(layers) for kind, layers in shown.items()}
    return CallOrder(calls if through_interface else None, {kind: len(each) for kind, each in shown.items()}, heads)


def capture(
    model: PreTrainedModel, inputs: dict[str, Tensor], how: CallOrder, layers: Collection[int] | None, *,
    values: bool = False, watch: AbstractContextManager[Any] | None = None,
) -> tuple[dict[Kind, dict[int, Tensor]], dict[Kind, dict[int, AttentionCall]], Any]:  # fmt: skip
    """Return the weights of the chosen layers by kind, the calls they come from if known, and the model's outputs.

    weights: kind -> layer -> what the model gave, (1, heads, queries, keys) if it is attention as it should be.
    values: also look for the output projections. watch: a context in which the pass runs.
    """
    chosen = {kind: [i for i in range(count) if layers is None or i in layers] for kind, count in how.layers.items()}
    if how.calls is None:
        with attending_with(model, "eager"), watch or nullcontext():
            outputs = run(model, inputs, output_attentions=True)
        found = by_kind(outputs, how.layers)
        return {kind: {i: found[kind][i] for i in chosen[kind]} for kind in found}, {}, outputs
    tap = _Tap({how.calls[kind][i] for kind, numbers in chosen.items() for i in numbers})
    looking = _seeing_projections(model, tap) if values else nullcontext()
    with _tapping(tap), attending_with(model, KERNEL), looking, watch or nullcontext():
        outputs = run(model, inputs)
    calls = {kind: {i: tap.calls[how.calls[kind][i]] for i in numbers} for kind, numbers in chosen.items()}
    return {kind: {i: call.weights for i, call in each.items()} for kind, each in calls.items()}, calls, outputs


def by_kind(outputs: Any, known: Collection[Kind] = ()) -> dict[Kind, tuple[Any, ...]]:
    """Sort the attentions of an output. Those of a model alone are causal if no row sees what comes after it."""
    shown = {name: [each for each in getattr(outputs, name, None) or () if each is not None] for name in FIELDS}
    named: dict[Kind, list[Any]] = {
        "self": shown["encoder_attentions"],
        "causal": shown["decoder_attentions"],
        "cross": shown["cross_attentions"],
    }
    if shown["attentions"]:
        ahead = [_looks_ahead(each) for each in shown["attentions"]]
        alone: Kind = "self" if any(ahead) else "causal"
        if known:
            alone = next(kind for kind in known if kind != "cross")
        named[alone] = shown["attentions"]
    return {kind: tuple(layers) for kind, layers in named.items() if layers}


def _looks_ahead(weights: Any) -> bool:
    """Whether a query gives weight to a later key; also for what is not attention, which is judged later."""
    if not isinstance(weights, Tensor) or weights.dim() != 4 or weights.shape[-2] != weights.shape[-1]:
        return True
    return bool(weights.triu(1).any())


def _shortened(row: Tensor) -> Tensor:
    """Return a row of SHORT tokens, cut or repeated, that ends as it did: some heads look for the last token."""
    times = -(-SHORT // row.shape[1])
    return torch.cat((row.repeat(1, times)[:, : SHORT - 1], row[:, -1:]), dim=1)


def _pointer(weights: Any) -> int:
    return weights.data_ptr() if isinstance(weights, Tensor) else -1


def _heads(layers: tuple[Any, ...]) -> int:
    first = layers[0]
    return first.shape[1] if isinstance(first, Tensor) and first.dim() == 4 else 0
