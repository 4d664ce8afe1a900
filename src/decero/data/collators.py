"""Collators turn rows into a padded batch. Each objective is one collator, a pure function of its rows.

A row carries its `index` in the data set and the current `epoch`, so no collator keeps random state. The same row of
the same epoch gives the same result in any order, on any number of processes, before and after a resume.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from decero.errors import UserError

IGNORED = -100  # the label that every Hugging Face loss skips


@dataclass
class OrdinaryTokens:
    """Know which tokens an objective may choose: all but the special ones. ordinary: their ids.

    Raises UserError for a tokenizer without a mask or a pad token.
    """

    tokenizer: PreTrainedTokenizerBase
    ordinary: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if self.tokenizer.mask_token_id is None or self.tokenizer.pad_token_id is None:
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path}: masked language modelling needs a mask and a pad token"
            )
        # Ids may have gaps, and added tokens may lie beyond len(tokenizer), so use a lookup table of ordinary ids.
        ids = np.array(sorted(self.tokenizer.get_vocab().values()))
        self.ordinary = ids[~np.isin(ids, self.tokenizer.all_special_ids)]
        self._is_ordinary = np.zeros(ids.max() + 1, dtype=bool)
        self._is_ordinary[self.ordinary] = True

    def ordinary_positions(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the positions of the ordinary tokens of a text."""
        return np.flatnonzero(self._is_ordinary[ids_L])


@dataclass
class MaskedLanguageModeling(OrdinaryTokens):
    """Mask tokens for masked language modelling, with new masks each epoch.

    A share `mlm_probability` of the ordinary tokens of a row is scored, at least one token. Of the scored tokens 80 %
    become the mask token, 10 % a random ordinary token, and 10 % stay unchanged. Special tokens are never scored and
    never drawn.
    whole_word: choose whole words, by the rows' `starts_word`; works for any fast tokenizer.
    frozen: treat every epoch as epoch 0, for evaluation.
    final_mlm_probability: the share at the end of the run; it changes linearly with the rows' `progress` (Yang et al.
    2023, section 4.1). Rows without progress have the first share.

    The choice is a pure function of (seed, epoch, index, progress).
    Source: Devlin et al. 2019, section 3.1; new masks each epoch: Liu et al. 2019, section 4.1.
    """

    mlm_probability: float = 0.15
    whole_word: bool = True
    seed: int = 0
    frozen: bool = False
    final_mlm_probability: float | None = None

    def mask(self, ids_L: np.ndarray, starts_word_L: np.ndarray, epoch: int, index: int, progress: float = 0.0):
        """Return the masked input ids and the labels, both (length,)."""
        rng = np.random.default_rng([self.seed, 0 if self.frozen else epoch, index])
        masked, labels = ids_L.copy(), np.full_like(ids_L, IGNORED)
        scored = self.choose(rng, ids_L, starts_word_L, progress)
        labels[scored] = ids_L[scored]
        draws = rng.random(len(scored))
        masked[scored[draws < 0.8]] = self.tokenizer.mask_token_id
        replaced = scored[(draws >= 0.8) & (draws < 0.9)]
        masked[replaced] = rng.choice(self.ordinary, size=len(replaced))
        return masked, labels

    def choose(
        self, rng: np.random.Generator, ids_L: np.ndarray, starts_word_L: np.ndarray, progress: float
    ) -> np.ndarray:
        """Return the positions that are scored, in order."""
        positions = self.ordinary_positions(ids_L)
        if not len(positions):
            return positions
        share = self.mlm_probability
        if self.final_mlm_probability is not None:
            share += progress * (self.final_mlm_probability - share)
        starts = starts_word_L[positions].copy() if self.whole_word else np.ones(len(positions), dtype=bool)
        starts[0] = True
        word_of_position = np.cumsum(starts) - 1
        sizes = np.bincount(word_of_position)
        order = rng.permutation(len(sizes))
        # The budget is rounded at random. A word that crosses it is taken when more than half of it fits. So the share
        # is exact on average.
        budget = share * len(positions) + rng.random() - 0.5
        middles = np.cumsum(sizes[order]) - sizes[order] / 2
        chosen = order[middles <= budget]
        chosen = chosen if len(chosen) else order[:1]
        return positions[np.isin(word_of_position, chosen)]

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, (batch, length) each, padded on the right.

        rows: with `input_ids`, `starts_word`, `epoch` and `index`.
        """
        length = max(len(row["input_ids"]) for row in rows)
        shape = len(rows), length
        masked = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        attention = np.zeros(shape, dtype=np.int64)
        for b, row in enumerate(rows):
            ids = np.asarray(row["input_ids"], dtype=np.int64)
            starts = np.asarray(row["starts_word"], dtype=bool)
            place = row["epoch"], row["index"], row.get("progress", 0.0)
            masked[b, : len(ids)], labels[b, : len(ids)] = self.mask(ids, starts, *place)
            attention[b, : len(ids)] = 1
        batch = {"input_ids": masked, "attention_mask": attention, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in batch.items()}


@dataclass
class ReplacedTokens(MaskedLanguageModeling):
    """Mask the tokens that a generator replaces, and draw the numbers with which it does so.

    The scored tokens are those of `MaskedLanguageModeling`. All of them become the mask token.
    A batch also has `draws`, (batch, length): a uniform number in [0, 1) at each masked token, 0 elsewhere. The
    generator turns it into a token, see `sample_ids`. So seed, epoch, index and its weights decide the replacements.

    Source: Clark et al. 2020, section 2. Their code leaves 15 % of the chosen tokens unmasked; their paper does not.
    """

    whole_word: bool = False

    def mask(self, ids_L: np.ndarray, starts_word_L: np.ndarray, epoch: int, index: int, progress: float = 0.0):
        rng = np.random.default_rng([self.seed, 0 if self.frozen else epoch, index])
        masked, labels = ids_L.copy(), np.full_like(ids_L, IGNORED)
        scored = self.choose(rng, ids_L, starts_word_L, progress)
        labels[scored] = ids_L[scored]
        masked[scored] = self.tokenizer.mask_token_id
        return masked, labels

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        batch["draws"] = torch.zeros(batch["labels"].shape)
        for row, labels_L, draws_L in zip(rows, batch["labels"], batch["draws"], strict=True):
            masked_L = labels_L != IGNORED
            rng = np.random.default_rng([self.seed, 0 if self.frozen else row["epoch"], row["index"], 1])
            draws_L[masked_L] = torch.from_numpy(rng.random(int(masked_L.sum()), dtype=np.float32))
        return batch


@dataclass
class ClassificationCollator:
    """Pad examples to the longest of the batch, on the tokenizer's padding side.

    left_out: model inputs of the tokenizer that the model does not take.
    more: columns to add, with one value or one list a row.
    """

    tokenizer: PreTrainedTokenizerBase
    left_out: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return the tokenizer's model inputs, (batch, length), and `labels`, (batch,) or (batch, labels)."""
        names = [name for name in self.tokenizer.model_input_names if name not in self.left_out]
        inputs = [{name: row[name] for name in names if name in row} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in ("labels", *self.more)}
