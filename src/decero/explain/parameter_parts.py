"""Sort the parameters of any model into parts: embeddings, positions, attention, feed-forward, norms, heads."""

import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

PARTS = ("embeddings", "positions", "attention", "feed-forward", "norms", "heads", "other")
# Families name these parts alike, in the name of a module or of its class.
NORM = re.compile(r"norm|\bln_|\bln\d?\b|\bbn\d?\b", re.IGNORECASE)
POSITION = re.compile(
    r"position|\bwpe\b|relative|rel_(pos|emb|bias)|\bpos_emb|r_[rsw]_bias|rel_attn\.r$", re.IGNORECASE
)
EMBEDDING = re.compile(r"emb|\bwte\b|\bshared\b|(cls|mask|distillation)_token", re.IGNORECASE)
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|\bff\b|LayerFF|DenseRelu|intermediate|experts?\b|moe", re.IGNORECASE)
LAST_OF_LAYER = re.compile(r"\.\d+\.(output\.dense|fc\d|lin\d|linear\d)\b")  # of BERT; of BART, which has no module
POOLER = re.compile(r"pooler|\bpooling", re.IGNORECASE)


def parts_of(model: PreTrainedModel) -> dict[str, int]:
    """Count the parameters of each part; their sum is that of `model.parameters()`. A tied weight counts once.

    A head is what stands outside of the base model, the output embeddings and a pooler. Positions are tables and
    relative biases. What no rule knows (convolutions, state spaces) is `other`. Parts without parameters are absent.
    """
    counts = dict.fromkeys(PARTS, 0)
    head, entry = _head_names(model), _input_ids(model)
    for name, parameter, chain in _walk(model):
        part = "embeddings" if id(parameter) in entry else "heads" if name in head else _part(name, chain)
        counts[part] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def tied_weights(model: PreTrainedModel) -> list[tuple[str, str, int]]:
    """List weights that are the same tensor: (name, name that it is counted under, number of parameters)."""
    first: dict[int, str] = {}
    found = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (other := first.setdefault(id(parameter), name)) != name:
            found.append((name, other, parameter.numel()))
    return found


def _walk(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter, list[str]]]:
    """Yield each parameter with its name and, from the inside to the outside, `name Class` of its modules."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        path = name.split(".")
        owners = [(path[i - 1], modules[".".join(path[:i])]) for i in range(len(path) - 1, 0, -1)]
        yield name, parameter, [f"{own} {type(module).__name__}" for own, module in owners]


def _head_names(model: PreTrainedModel) -> set[str]:
    """Return the names of parameters of heads, as `named_parameters` gives them."""
    base, inside = model.base_model, {id(parameter) for parameter in model.base_model.parameters()}
    output = model.get_output_embeddings()
    output_ids = {id(parameter) for parameter in output.parameters()} if isinstance(output, nn.Module) else set()
    names = set()
    for name, parameter in model.named_parameters():
        outside = base is not model and id(parameter) not in inside
        if outside or id(parameter) in output_ids or POOLER.search(name):
            names.add(name)
    return names


def _input_ids(model: PreTrainedModel) -> set[int]:
    """Identify the parameters of the input embeddings; some vision models have none, and raise."""
    try:
        entry = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return set()
    return {id(parameter) for parameter in entry.parameters()} if isinstance(entry, nn.Module) else set()


def _part(name: str, chain: list[str]) -> str:
    last = name.rpartition(".")[2]
    if NORM.search(last) or (chain and NORM.search(chain[0])):
        return "norms"
    if POSITION.search(name):
        return "positions"
    if LAST_OF_LAYER.search(name):
        return "feed-forward"
    for module in chain:  # the innermost module that says what it is
        if ATTENTION.search(module.partition(" ")[0]) or re.search("Attention|Attn|SelfOutput", module):
            return "attention"
        if FEED_FORWARD.search(module):
            return "feed-forward"
        if EMBEDDING.search(module):
            return "embeddings"
    return "embeddings" if EMBEDDING.search(last) else "other"
