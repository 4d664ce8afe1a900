"""Tokens that are drawn instead of taken: temperature and nucleus (Holtzman et al. 2020, arXiv:1904.09751, 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decero.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How to draw. temperature: what logits are divided by. top_p: share of the probability that the likeliest tokens
    drawn from hold together, at least. seeds: of each source, so that its answer does not depend on its batch.

    Raises UserError for a temperature that is not above 0, a share outside (0, 1].
    """

    seeds: Sequence[Sequence[int]]
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise UserError(f"temperature {self.temperature} is not above 0; leave it out for the likeliest tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} is no share of 1; 0.9 is usual")

    def uniform(self, places: Sequence[int], steps: int) -> Tensor:
        """(sources, steps) numbers in [0, 1), a function of the seeds alone."""
        drawn = [np.random.default_rng(list(self.seeds[place])).random(steps) for place in places]
        return torch.as_tensor(np.stack(drawn), dtype=torch.float64)

    def pick(self, logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """A token a row: where its number falls among the likeliest tokens, each as wide as its probability."""
        probabilities_BV, tokens_BV = (
            (logits_BV.double() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        )
        reached_BV = probabilities_BV.cumsum(-1)
        kept_BV = reached_BV - probabilities_BV < self.top_p  # up to and with the one that reaches the share
        mass_B = (probabilities_BV * kept_BV).sum(-1)
        place_B = torch.searchsorted(reached_BV, (uniform_B * mass_B)[:, None], right=True)
        return tokens_BV.gather(1, place_B.clamp(max=logits_BV.shape[1] - 1)).squeeze(1)
