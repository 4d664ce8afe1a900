"""Hybrid masked and causal language modelling: one decoder that continues texts and fills their holes."""

from dataclasses import dataclass, field

import numpy as np
import torch

from decero.data.causal import CausalLanguageModeling
from decero.data.collators import IGNORED, MaskedLanguageModeling
from decero.data.order import seed_sequence
from decero.data.pairs import Pair
from decero.data.permutation import stack_ordered
from decero.errors import UserError


@dataclass
class HybridLanguageModeling(CausalLanguageModeling):
    """Read a share `causal_fraction` of the rows from left to right, and the others both ways with masked tokens.

    In both modes the output at a token answers for the next one (masked next-token prediction). A causal row scores
    all its tokens; another row scores the masked ones, a share `mlm_probability`. Each scored token counts the same.
    frozen: treat every epoch as epoch 0, for evaluation.

    The mode and the masks of a row are a pure function of (seed, epoch, index).
    Source: Charpentier & Samuel 2024 (GPT-BERT), section 3.
    """

    causal_fraction: float = 0.5
    mlm_probability: float = 0.15
    seed: int = 0
    frozen: bool = False
    masks: MaskedLanguageModeling = field(init=False, repr=False)

    def __post_init__(self):
        if self.tokenizer.mask_token_id is None or self.tokenizer.pad_token_id is None:
            raise UserError(f"tokenizer {self.tokenizer.name_or_path}: hybrid_lm needs a mask and a pad token")
        self.masks = MaskedLanguageModeling(
            self.tokenizer, self.mlm_probability, whole_word=False, seed=self.seed, frozen=self.frozen
        )

    def is_causal(self, row: dict) -> bool:
        """Return the mode of a row."""
        epoch = 0 if self.frozen else row["epoch"]
        drawn = np.random.default_rng(seed_sequence(self.seed, epoch, row["index"])).random()
        return bool(drawn < self.causal_fraction)

    def pair(self, row: dict) -> Pair:
        if self.is_causal(row):
            return super().pair(row)
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        every = np.ones(len(ids) - 1, dtype=bool)
        masked, labels = self.masks.mask(ids[1:], every, row["epoch"], row["index"])  # never the start token
        return np.append(ids[:1], masked), np.append(labels, IGNORED)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return the batch of `stack_ordered`; in a causal row the rank of a token is its position."""
        made = []
        for row in rows:
            ids, labels = self.pair(row)
            position = np.arange(len(ids))
            rank = position if self.is_causal(row) else np.zeros_like(position)
            made.append({"input_ids": ids, "position_ids": position, "ranks": rank, "horizons": rank, "labels": labels})
        return stack_ordered(made, self.tokenizer.pad_token_id)
