"""Permutation language modelling: the order in which a row's targets are predicted, and the batch that states it.

Two tensors say who sees whom: token i sees token j of the same text if ranks[j] <= horizons[i]. Content that is no
target has rank 0. Targets have ranks 1, 2 ... in the order of their prediction. A query token has rank `UNSEEN`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decero.data.collators import IGNORED, OrdinaryTokens
from decero.data.packing import FILL
from decero.data.sizes import Sizes, both_sides

UNSEEN = 2**30  # the rank of a query token: no horizon is as large
Arrays = dict[str, np.ndarray]


def add_queries(ids_L: np.ndarray, targets_T: np.ndarray, query_id: int) -> Arrays:
    """Put a query token for each target behind a text: the two streams of XLNet as one sequence.

    targets_T: positions in the order of their prediction. query_id: the token that all queries read.
    A query has the position of its target. It sees what the target may use: the tokens that are no targets, and the
    targets before it. No token sees a query.
    Returns `input_ids`, `position_ids`, `ranks`, `horizons` and `labels`, (length + targets,) each.
    Source: Yang et al. 2019, eq. 4 and section 2.3; a mask token takes the place of the vector w.
    """
    L, T = len(ids_L), len(targets_T)
    ranks_L, by_position_T = np.zeros(L, dtype=np.int64), np.sort(targets_T)
    ranks_L[targets_T] = 1 + np.arange(T)
    return {
        "input_ids": np.concatenate([ids_L, np.full(T, query_id)]),
        "position_ids": np.concatenate([np.arange(L), by_position_T]),
        "ranks": np.concatenate([ranks_L, np.full(T, UNSEEN)]),
        "horizons": np.concatenate([ranks_L, ranks_L[by_position_T] - 1]),
        "labels": np.concatenate([np.full(L, IGNORED), ids_L[by_position_T]]),
    }


def stack_ordered(rows: Sequence[Arrays], pad_id: int) -> dict[str, Tensor]:
    """Pad rows that have `ranks` and `horizons` on the right; add `attention_mask` and `text_ids`, as in packed rows.

    Returns (batch, length) tensors.
    """
    length = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        fill = pad_id if name == "input_ids" else FILL.get(name, 0)
        batch[name] = torch.full((len(rows), length), fill, dtype=torch.long)
        for b, row in enumerate(rows):
            batch[name][b, : len(row[name])] = torch.from_numpy(row[name])
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
    batch["text_ids"] = batch["attention_mask"] * torch.arange(1, len(rows) + 1)[:, None]
    return batch


def holes_unseen(batch: dict[str, Tensor], hole_BL: Tensor) -> dict[str, Tensor]:
    """Let no token see a hole, as in permutation language modelling, where the mask token only asks for a prediction.

    hole_BL: bool, where the holes are. Returns the batch with what `packed_outputs` needs.
    """
    real_BL = batch["attention_mask"].bool()
    return batch | {
        "text_ids": real_BL * torch.arange(1, len(real_BL) + 1, device=real_BL.device)[:, None],
        "position_ids": (real_BL.cumsum(dim=1) - 1).clamp(min=0),
        "ranks": hole_BL * UNSEEN,
        "horizons": torch.zeros_like(batch["input_ids"]),
    }


def holes_mapped(batch: dict[str, Tensor], hole_BL: Tensor) -> dict[str, Tensor]:
    """Ask `XLNetLMHeadModel` for the tokens at holes, which no token sees.

    hole_BL: bool, where the holes are, at least one. Adds `perm_mask` (batch, length, length) and `target_mapping`
    (batch, holes, length): the holes of a row from left to right, then zeros.
    """
    B, L = hole_BL.shape
    mapping_BTL = torch.zeros(B, int(hole_BL.sum(dim=1).max()), L, device=hole_BL.device)
    row_N, place_N = hole_BL.nonzero(as_tuple=True)
    mapping_BTL[row_N, (hole_BL.cumsum(dim=1) - 1)[row_N, place_N], place_N] = 1
    return batch | {"perm_mask": hole_BL[:, None].expand(B, L, L).float(), "target_mapping": mapping_BTL}


def two_streams(rows: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int) -> dict[str, Tensor]:
    """Make the batch of `XLNetLMHeadModel` from texts and their targets, in the order of prediction.

    Returns `input_ids` and `attention_mask` (batch, length), `perm_mask` (batch, length, length), 1 where a token does
    not see another, `target_mapping` (batch, targets, length), and `labels` (batch, targets).
    """
    B, L = len(rows), max(len(ids_L) for ids_L, _ in rows)
    T = max(1, *(len(targets_T) for _, targets_T in rows))
    batch = {
        "input_ids": torch.full((B, L), pad_id), "attention_mask": torch.zeros(B, L, dtype=torch.long),
        "perm_mask": torch.zeros(B, L, L), "target_mapping": torch.zeros(B, T, L),
        "labels": torch.full((B, T), IGNORED),
    }  # fmt: skip
    for b, (ids_L, targets_T) in enumerate(rows):
        row = add_queries(ids_L, targets_T, pad_id)
        n, t = len(ids_L), len(targets_T)
        batch["input_ids"][b, :n] = torch.from_numpy(ids_L)
        batch["attention_mask"][b, :n] = 1
        ranks_L = torch.from_numpy(row["ranks"][:n])
        # The class lets each token see itself in the content stream. So targets are hidden from themselves here.
        batch["perm_mask"][b, :n, :n] = ((ranks_L[None] >= ranks_L[:, None]) & (ranks_L[None] > 0)).float()
        batch["target_mapping"][b, torch.arange(t), torch.from_numpy(row["position_ids"][n:])] = 1
        batch["labels"][b, :t] = torch.from_numpy(row["labels"][n:])
    return batch


@dataclass
class PermutationLanguageModeling(OrdinaryTokens):
    """Predict some tokens of a text, each from the tokens that are no targets and from the targets before it.

    A share `plm_probability` of the ordinary tokens of a row are targets, at least one, in spans of 1 to
    `max_span_length` tokens. The order of the targets is random. No token is replaced, so a target can depend on those
    before it. `DataCollatorForPermutationLanguageModeling` of transformers masks them, so there it cannot.
    for_xlnet: emit the arguments of `XLNetLMHeadModel`, instead of queries behind the text.
    frozen: treat every epoch as epoch 0, for evaluation.

    Targets and order are a pure function of (seed, epoch, index).
    Source: Yang et al. 2019, sections 2.2 and 2.3 (partial prediction, K = 6), 3.1 (spans of 1 to 5 tokens).
    """

    plm_probability: float = 1 / 6
    max_span_length: int = 5
    seed: int = 0
    frozen: bool = False
    for_xlnet: bool = False

    def targets(self, ids_L: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """Return the positions of the targets in the order of their prediction."""
        rng = np.random.default_rng([self.seed, 0 if self.frozen else epoch, index])
        ordinary_N = self.ordinary_positions(ids_L)
        left = min(self.most_targets(len(ordinary_N)), len(ordinary_N), len(ids_L) - 1)  # one token is always seen
        if left < 1:
            return np.empty(0, dtype=np.int64)
        kept, spans = len(ordinary_N) - left, []
        while left:
            spans.append(min(int(rng.integers(1, self.max_span_length + 1)), left))
            left -= spans[-1]
        # On a ring every place is equally likely; in a line the ends would be rare. Each span follows a kept token.
        starts_S = np.sort(rng.choice(max(kept, 1), size=len(spans), replace=len(spans) > kept))
        firsts_S = starts_S + np.cumsum([0, *spans[:-1]]) + rng.integers(len(ordinary_N))
        chosen = np.concatenate([np.arange(first, first + span) for first, span in zip(firsts_S, spans, strict=True)])
        return rng.permutation(ordinary_N[chosen % len(ordinary_N)])

    def most_targets(self, length):
        """Return how many targets a text with this number of ordinary tokens has; the most for one of this length."""
        return np.maximum(1, np.rint(self.plm_probability * np.asarray(length))).astype(np.int64)

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return the sizes of rows with these numbers of tokens: the text and its queries."""
        read_N = np.maximum(ids_N, 1) + (0 if self.for_xlnet else self.most_targets(ids_N))
        return both_sides(read_N, np.zeros_like(ids_N))

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        """Return the batch of `stack_ordered`, or that of `two_streams` for XLNet."""
        pad, query = self.tokenizer.pad_token_id, self.tokenizer.mask_token_id
        texts = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
        targets = [self.targets(ids, row["epoch"], row["index"]) for ids, row in zip(texts, rows, strict=True)]
        pairs = list(zip(texts, targets, strict=True))
        if self.for_xlnet:
            return two_streams(pairs, pad)
        return stack_ordered([add_queries(ids, chosen, query) for ids, chosen in pairs], pad)
