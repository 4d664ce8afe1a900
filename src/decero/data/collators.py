"""Collators: rows to a padded batch. One objective is one collator, and each is a pure function of its rows.

A row carries its `index` in the data set and the `epoch` it is read in, so no collator keeps a random state: the same
row of the same epoch gives the same batch in any order, on any number of processes, before and after a resume.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from decero.errors import UserError

IGNORED = -100  # the label that no loss scores, everywhere in Hugging Face


@dataclass
class MaskedLanguageModeling:
    """Masked language modelling: Devlin et al. 2019, section 3.1; masks drawn anew each epoch: Liu et al. 2019, 4.1.

    Of the ordinary tokens of a row a share of `mlm_probability` is scored (at least one): 80 % of them read as the
    mask token, 10 % as a random ordinary token, 10 % as themselves. Special tokens are never chosen and never drawn.
    whole_word: choose words, not tokens, by the rows' `starts_word`; right for any fast tokenizer.

    The choice is a pure function of (seed, epoch, index). `frozen=True` reads every epoch as epoch 0, for evaluation.
    """

    tokenizer: PreTrainedTokenizerBase
    mlm_probability: float = 0.15
    whole_word: bool = True
    seed: int = 0
    frozen: bool = False
    ordinary: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if self.tokenizer.mask_token_id is None or self.tokenizer.pad_token_id is None:
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path}: masked language modelling needs a mask and a pad token"
            )
        # Ids may have holes and added tokens may lie beyond len(tokenizer), so what is ordinary is looked up.
        ids = np.array(sorted(self.tokenizer.get_vocab().values()))
        self.ordinary = ids[~np.isin(ids, self.tokenizer.all_special_ids)]
        self._is_ordinary = np.zeros(ids.max() + 1, dtype=bool)
        self._is_ordinary[self.ordinary] = True

    def mask(self, ids_L: np.ndarray, starts_word_L: np.ndarray, epoch: int, index: int):
        """Returns the tokens to read and the labels to score, both (length,)."""
        rng = np.random.default_rng([self.seed, 0 if self.frozen else epoch, index])
        places = np.flatnonzero(self._is_ordinary[ids_L])
        read, labels = ids_L.copy(), np.full_like(ids_L, IGNORED)
        if not len(places):
            return read, labels
        starts = starts_word_L[places].copy() if self.whole_word else np.ones(len(places), dtype=bool)
        starts[0] = True
        word_of_place = np.cumsum(starts) - 1
        sizes = np.bincount(word_of_place)
        order = rng.permutation(len(sizes))
        # The budget is rounded by chance, and a word that straddles it is taken when more than half of it fits: on
        # average the share is exact.
        budget = self.mlm_probability * len(places) + rng.random() - 0.5
        middles = np.cumsum(sizes[order]) - sizes[order] / 2
        chosen = order[middles <= budget]
        chosen = chosen if len(chosen) else order[:1]
        scored = places[np.isin(word_of_place, chosen)]
        labels[scored] = ids_L[scored]
        fate = rng.random(len(scored))
        read[scored[fate < 0.8]] = self.tokenizer.mask_token_id
        randomly = scored[(fate >= 0.8) & (fate < 0.9)]
        read[randomly] = rng.choice(self.ordinary, size=len(randomly))
        return read, labels

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """rows: `input_ids`, `starts_word`, `epoch`, `index`. Returns (batch, length) tensors, padded on the right."""
        length = max(len(row["input_ids"]) for row in rows)
        shape = len(rows), length
        read = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        attention = np.zeros(shape, dtype=np.int64)
        for b, row in enumerate(rows):
            ids = np.asarray(row["input_ids"], dtype=np.int64)
            starts = np.asarray(row["starts_word"], dtype=bool)
            read[b, : len(ids)], labels[b, : len(ids)] = self.mask(ids, starts, row["epoch"], row["index"])
            attention[b, : len(ids)] = 1
        batch = {"input_ids": read, "attention_mask": attention, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in batch.items()}


@dataclass
class ClassificationCollator:
    """Pads examples to the longest of the batch, on the tokenizer's own side. Labels: (batch,) or (batch, labels).

    left_out: model inputs of the tokenizer that the model does not take.
    """

    tokenizer: PreTrainedTokenizerBase
    left_out: tuple[str, ...] = ()

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """rows: the tokenizer's model inputs and `labels`. Returns tensors of (batch, length)."""
        names = [name for name in self.tokenizer.model_input_names if name not in self.left_out]
        inputs = [{name: row[name] for name in names if name in row} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        labels = [row["labels"] for row in rows]
        batch["labels"] = torch.tensor(labels)
        return batch
