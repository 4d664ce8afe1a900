"""Choose a model size for a given compute: a family of shapes, and published scaling laws.

- Tokens: 20 per parameter (Hoffmann et al. 2022, table 3). The parameters used per token count: FLOPs per token / 6
  (after Bi et al. 2024, section 3.2), because most parameters of a small model are embeddings, which cost no FLOPs.
  Read and written tokens both count; in an encoder-decoder each uses its own half. The law was fitted to causal models
  of 70 M to 16 B parameters. That it holds for other, small models is an assumption.
- Batch and learning rate: those of a known run, times (compute / its compute) ** 0.3271 and ** -0.1250 (Bi et al.
  2024, section 3.1, also fitted to causal models).
- Epochs: limited by the recipe, because repeated text is worth less each time (Muennighoff et al. 2023).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from decero.config.sections import ModelSection
from decero.config.yaml_files import read_yaml
from decero.execution.build import read_preset

TOKENS_PER_PARAMETER = 20
BATCH_EXPONENT, RATE_EXPONENT = 0.3271, -0.1250
WARM_UP = 0.05  # share of the steps; RoBERTa: 24 k of 500 k (Liu et al. 2019, table 9)
WIDTHS = range(128, 769, 64)  # heads of size 64; the last is BERT base
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def family(model: ModelSection) -> list[dict[str, Any]]:
    """List the preset in other sizes, smallest first, as overrides; everything else stays.

    Shapes have one or two layers per head, so that no shape is much larger than the one before. Empty for a checkpoint,
    and for an architecture with other names for its sizes.
    """
    if model.config is None:
        return []
    stated = read_yaml(model.config) | model.overrides
    base = read_preset(model.config, model.overrides)
    if not all(hasattr(base, name) for name in SIZES):
        return []
    queries_per_key = base.num_attention_heads // (
        getattr(base, "num_key_value_heads", None) or base.num_attention_heads
    )

    def fields_of(width: int, depth: int) -> dict[str, Any]:
        heads = width // 64
        fields: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        fields["intermediate_size"] = 8 * round(base.intermediate_size * width / base.hidden_size / 8)
        fields["initializer_range"] = round(base.initializer_range * math.sqrt(base.hidden_size / width), 4)
        if queries_per_key > 1 or stated.get("num_key_value_heads"):
            fields["num_key_value_heads"] = heads if heads % queries_per_key else heads // queries_per_key
        if stated.get("head_dim"):
            fields["head_dim"] = 64
        if kinds := stated.get("layer_types"):
            fields["layer_types"] = [kinds[layer % len(kinds)] for layer in range(depth)]
        if stated.get("decoder_layers"):
            fields["decoder_layers"] = depth
        if own := stated.get("decoder_intermediate_size"):
            fields["decoder_intermediate_size"] = 8 * round(own * width / base.hidden_size / 8)
        return fields

    def depth_limit(width: int) -> float:
        """Return the depth at which this width is as large as the smallest shape of the next width."""
        return math.inf if width == WIDTHS[-1] else (width // 64 + 1) * (1 + 64 / width) ** 2

    return [
        fields_of(width, depth)
        for width in WIDTHS
        for depth in range(width // 64, 2 * (width // 64) + 1)
        if depth < depth_limit(width)
    ]


def choose(
    seconds: float, parameters: Sequence[float], speeds: Sequence[float], most_tokens: float
) -> tuple[int, float]:
    """Choose the largest shape that gets 20 tokens per parameter in the time; return (its index, tokens).

    parameters: used per token, for each shape, smallest first. speeds: tokens per second. most_tokens: the limit of the
    corpus. Remaining time goes into more tokens, up to the need of the next shape. So more time never gives a smaller
    shape or fewer tokens.
    """
    needed = [TOKENS_PER_PARAMETER * count for count in parameters]
    affordable = [i for i, speed in enumerate(speeds) if needed[i] <= min(seconds * speed, most_tokens)]
    index = max(affordable, default=0)
    next_need = needed[index + 1] if index + 1 < len(needed) else math.inf
    return index, min(seconds * speeds[index], most_tokens, next_need)


class StepPlan(NamedTuple):
    """The plan of a run.

    steps: optimizer steps. batch: rows or tokens per step. rate: factor for the learning rate of the known run.
    """

    steps: int
    batch: int
    rate: float


def plan(
    tokens: float, batch: int, tokens_per_unit: float, compute: float, least: int = 1, fixed: bool = False
) -> StepPlan:
    """Plan steps, batch and learning rate for `tokens`, from a known run with `batch` rows or tokens per step.

    compute: relative to the known run. tokens_per_unit: tokens per row, or 1. The law says how often to double or halve
    the batch. Halving stops at odd numbers and at `least`; with `fixed` the batch does not change. So batches are
    multiples of each other, and a larger one never gives fewer tokens in total. The learning rate is never raised,
    because the known one is proven to work.
    """
    doublings = 0 if fixed else round(math.log2(compute**BATCH_EXPONENT))
    while doublings < 0 and batch % 2 == 0 and batch // 2 >= least:
        batch, doublings = batch // 2, doublings + 1
    batch *= 2 ** max(0, doublings)
    return StepPlan(max(1, math.ceil(tokens / (batch * tokens_per_unit))), batch, min(1.0, compute**RATE_EXPONENT))
