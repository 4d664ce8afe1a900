"""Sample tokens with temperature and top-p (nucleus) sampling.

Source: Holtzman et al. 2020, arXiv:1904.09751, 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decero.errors import UserError

LOWEST = 1e-4  # temperature; below it the likeliest token is always drawn


@dataclass(frozen=True)
class Sampling:
    """Describe how to sample.

    seeds: one per source, so that an answer does not depend on its batch.
    temperature: divides the logits.
    top_p: sample from the smallest set of likeliest tokens with at least this probability in sum.

    Raises UserError if temperature is outside [LOWEST, 1/LOWEST] or top_p is outside (0, 1].
    """

    seeds: Sequence[Sequence[int]]
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        if not LOWEST <= self.temperature <= 1 / LOWEST:
            raise UserError(
                f"temperature {self.temperature} must be from {LOWEST} to {1 / LOWEST:,.0f}; remove it to take the "
                "likeliest tokens"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} must be above 0 and at most 1, such as 0.9")

    def uniform(self, indices: Sequence[int], steps: int) -> Tensor:
        """Return (sources, steps) numbers in [0, 1) that depend only on the seeds."""
        drawn = [np.random.default_rng(list(self.seeds[index])).random(steps) for index in indices]
        return torch.as_tensor(np.stack(drawn), dtype=torch.float64)

    def pick(self, logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """Pick a token per row: the one where uniform_B falls in the cumulative probability."""
        probabilities_BV, tokens_BV = (
            (logits_BV.double() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        )
        reached_BV = probabilities_BV.cumsum(-1)
        kept_BV = reached_BV - probabilities_BV < self.top_p  # up to and including the token that reaches top_p
        mass_B = (probabilities_BV * kept_BV).sum(-1)
        place_B = torch.searchsorted(reached_BV, (uniform_B * mass_B)[:, None], right=True)
        return tokens_BV.gather(1, place_B.clamp(max=logits_BV.shape[1] - 1)).squeeze(1)
