"""How large a model for how much compute: a family of shapes, and published laws that choose among them.

- Tokens: 20 for each parameter (Hoffmann et al. 2022, table 3), parameters counted as a token meets them: FLOPs a token
  / 6 (after Bi et al. 2024, section 3.2), since most of a small model's are embeddings, which cost nothing. Tokens are
  those that are read and those that are written: of an encoder-decoder each meets its own half. The law was fitted to
  causal models of 70 M to 16 B parameters; that it holds for small ones of another kind is an assumption.
- Batch and learning rate: a run's own, times (compute / that run's) ** 0.3271 and ** -0.1250 (Bi et al. 2024, section
  3.1, fitted to causal models as well).
- Epochs: at most as many as a recipe says, for repeated text is worth ever less (Muennighoff et al. 2023).
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
WIDTHS = range(128, 769, 64)  # heads of 64; BERT base at the end
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def family(model: ModelSection) -> list[dict[str, Any]]:
    """The preset in other sizes, its slots as they are, smallest first: fields to lay over it.

    A layer or two for each head of 64, so that no shape is much larger than the one before. Empty for a checkpoint, and
    for an architecture that names its sizes otherwise.
    """
    if model.config is None:
        return []
    stated = read_yaml(model.config) | model.overrides
    base = read_preset(model.config, model.overrides)
    if not all(hasattr(base, name) for name in SIZES):
        return []
    shared = base.num_attention_heads // (getattr(base, "num_key_value_heads", None) or base.num_attention_heads)

    def at(width: int, depth: int) -> dict[str, Any]:
        heads = width // 64
        fields: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        fields["intermediate_size"] = 8 * round(base.intermediate_size * width / base.hidden_size / 8)
        fields["initializer_range"] = round(base.initializer_range * math.sqrt(base.hidden_size / width), 4)
        if shared > 1:
            fields["num_key_value_heads"] = heads if heads % shared else heads // shared
        if stated.get("head_dim"):
            fields["head_dim"] = 64
        if kinds := stated.get("layer_types"):
            fields["layer_types"] = [kinds[layer % len(kinds)] for layer in range(depth)]
        if stated.get("decoder_layers"):
            fields["decoder_layers"] = depth
        return fields

    def next_begins(width: int) -> float:
        """Layers at which this width would weigh what the next one begins with."""
        return math.inf if width == WIDTHS[-1] else (width // 64 + 1) * (1 + 64 / width) ** 2

    return [
        at(width, depth)
        for width in WIDTHS
        for depth in range(width // 64, 2 * (width // 64) + 1)
        if depth < next_begins(width)
    ]


def choose(seconds: float, met: Sequence[float], speeds: Sequence[float], most_tokens: float) -> tuple[int, float]:
    """Which shape, and how many tokens for it: the largest that sees 20 tokens a parameter in the time and the corpus.

    met: parameters of each shape as a token meets them, smallest first. speeds: tokens a second. What is left of the
    time goes into more tokens, up to what the next shape would want; so more time never means a smaller shape or fewer
    tokens.
    """
    wanted = [TOKENS_PER_PARAMETER * each for each in met]
    within = [i for i, speed in enumerate(speeds) if wanted[i] <= min(seconds * speed, most_tokens)]
    index = max(within, default=0)
    enough = wanted[index + 1] if index + 1 < len(wanted) else math.inf
    return index, min(seconds * speeds[index], most_tokens, enough)


class Plan(NamedTuple):
    """Optimizer steps, and what each reads in rows or tokens. rate: factor of the known run's learning rate."""

    steps: int
    batch: int
    rate: float


def plan(tokens: float, batch: int, tokens_a_unit: float, compute: float, least: int = 1, fixed: bool = False) -> Plan:
    """Steps, batch and learning rate for so many tokens, from those of a run whose steps read `batch` rows (or tokens).

    compute: in units of that run's. The batch is doubled or, while that leaves no remainder, halved, as often as the
    law says; so a larger one never ends in fewer tokens. It stays at `least` or above, or with `fixed` as it is. The
    learning rate is lowered as the law says, and never raised: that of the run is one that somebody saw work.
    """
    doublings = 0 if fixed else round(math.log2(compute**BATCH_EXPONENT))
    while doublings < 0 and batch % 2 == 0 and batch // 2 >= least:
        batch, doublings = batch // 2, doublings + 1
    batch *= 2 ** max(0, doublings)
    return Plan(max(1, math.ceil(tokens / (batch * tokens_a_unit))), batch, min(1.0, compute**RATE_EXPONENT))
