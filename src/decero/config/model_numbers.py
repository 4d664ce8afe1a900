"""Check the numbers of a model's configuration before a model of that size is built."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

LARGEST = 2**40  # of any number
RULES: tuple[tuple[str, float, float], ...] = (  # pattern of names, smallest value, largest value; the first one counts
    (r"(hidden|vocab|intermediate)_size|d_model|n_embd|num_attention_heads|n_head|head_dim", 1, 2**31),
    (r"max_position_embeddings|n_positions|num_labels|.*_theta", 1, 2**31),
    (r".*_token_id", -1, 2**31),  # -1 stands for none in some configurations
    (r".*layers|n_layer", 0, 10_000),
    (r".*dropout.*|.*_drop|.*pdrop|label_smoothing", 0, 1),
    (r".*_(size|heads|dim|embeddings|positions|buckets|window|offset)|d_\w+|n_(positions|ctx|inner)", 0, 2**31),
    (r".*_(range|eps|epsilon)", 0, LARGEST),
)


def check_model_numbers(fields: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for a negative or absurd size, a dropout outside [0, 1], or a number that is not finite.

    fields: configuration fields of any architecture, perhaps nested. where: prefix of the names in the message.
    """
    for path, name, value in _numbers(fields, where):
        low, high = next(((low, high) for form, low, high in RULES if re.fullmatch(form, name)), (-LARGEST, LARGEST))
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{path} is {value}; give a number from {low:g} to {high:g}")


def _numbers(value: Any, path: str, name: str = "") -> Iterator[tuple[str, str, float]]:
    """Yield path, name and value of every number. A list's numbers have its name; names are compared in lower case."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}", str(key).lower())
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, path, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, name, value
