"""Packing: several texts in one row, so that no token is padding; none of them sees another.

The examples of a step stay what they are. Packing only lays them out, so the loss and the gradient are those of the
padded batch, and a run may switch it on or off in the middle.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decero.data.sizes import Sizes, sizes_of

Batch = dict[str, Tensor]
FILL = {"labels": -100}  # what stands where no text does; 0 for everything else


def best_fit(lengths: Sequence[Sequence[int]], capacities: Sequence[int]) -> list[list[int]]:
    """Which texts share a row: best-fit decreasing (Johnson et al. 1974), within 11/9 of the fewest rows possible.

    lengths: one or more sizes a text (source, target); no row holds more than `capacities` of each. A text longer than
    that has a row to itself. The first size decides what fits best.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i][0], i))
    rows: list[list[int]] = []
    rooms: list[list[int]] = []
    by_room: list[tuple[int, int]] = []  # (room for the first size, row), sorted
    for text in order:
        sizes = lengths[text]
        at = bisect_left(by_room, (sizes[0], -1))
        while at < len(by_room) and any(s > r for s, r in zip(sizes, rooms[by_room[at][1]], strict=True)):
            at += 1
        if at < len(by_room):
            _, row = by_room.pop(at)
        else:
            row = len(rows)
            rows.append([])
            rooms.append(list(capacities))
        rows[row].append(text)
        rooms[row] = [r - s for r, s in zip(rooms[row], sizes, strict=True)]
        insort(by_room, (rooms[row][0], row))
    return rows


def lay_out(tensors: Batch, real_BL: Tensor, rows: list[list[int]], shortest: int = 0) -> Batch:
    """Move the tokens of padded texts (batch, length) to packed rows (rows, longest row, or `shortest` at least).

    real_BL: where text is. Adds `position_ids`, which start again with each text, and `text_ids`: which text of the
    batch a token belongs to, counted from 1; 0 is padding.
    """
    lengths = real_BL.sum(dim=1).tolist()  # of Python's numbers: to ask a tensor for each took half of the time
    C = max(shortest, *(sum(lengths[text] for text in row) for row in rows))
    starts = [0] * len(lengths)
    for r, row in enumerate(rows):
        at = r * C
        for text in row:
            starts[text] = at
            at += lengths[text]
    starts_B = torch.tensor(starts, device=real_BL.device)
    position_N = (real_BL.cumsum(dim=1) - 1)[real_BL]
    text_N = real_BL.nonzero()[:, 0]
    flat_N = starts_B[text_N] + position_N
    columns = {name: (tensor[real_BL], FILL.get(name, 0)) for name, tensor in tensors.items()}
    columns |= {"position_ids": (position_N, 0), "text_ids": (text_N + 1, 0)}
    packed = {}
    for name, (values_N, fill) in columns.items():
        flat = values_N.new_full((len(rows) * C,), fill)
        flat[flat_N] = values_N
        packed[name] = flat.view(len(rows), C)
    return packed


@dataclass
class Packed:
    """A collator whose batches are packed into rows of `capacity` tokens, whatever the collator.

    per_text: tensors that hold one item a text (labels of a classifier), not one a token; they stay as they are. With
    `decoder_input_ids` the two sides of a text share a row; the decoder's carry `decoder_position_ids` and
    `decoder_text_ids`. full: rows are `capacity` long even when none needs it, so that a compiler sees one shape.
    """

    collate: Callable[[list[dict]], Batch]
    capacity: int
    decoder_capacity: int = 0
    per_text: tuple[str, ...] = ()
    full: bool = False

    def __call__(self, rows: list[dict]) -> Batch:
        batch = self.collate(rows)
        masks = [mask for name, mask in batch.items() if name.endswith("attention_mask")]
        as_wide = batch["input_ids"].shape[1] == self.capacity or not self.full
        if as_wide and 2 * batch["input_ids"].shape[1] > self.capacity and all(bool(mask.all()) for mask in masks):
            return batch  # every row is one whole text: there is nothing to gain, and no mask is the fastest mask
        return self.pack(batch)

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """What the collator makes of rows of so many tokens."""
        return sizes_of(self.collate, ids_N, labels_N)

    def pack(self, batch: Batch) -> Batch:
        """A padded batch, packed."""
        batch = dict(batch)
        real_BL = batch.pop("attention_mask").bool()
        sides = [real_BL]
        if "decoder_input_ids" in batch:
            written = batch.pop("decoder_attention_mask", None)
            sides.append((batch["labels"] != FILL["labels"]) if written is None else written.bool())
        lengths = torch.stack([side.sum(dim=1) for side in sides], dim=1).tolist()
        capacities = [self.capacity, self.decoder_capacity or self.capacity][: len(sides)]
        together = best_fit(lengths, capacities)
        decoder = {n: batch.pop(n) for n in ("decoder_input_ids", "labels") if len(sides) == 2}
        shortest = capacities if self.full else [0, 0]
        packed = {n: batch.pop(n) for n in self.per_text} | lay_out(batch, real_BL, together, shortest[0])
        packed["attention_mask"] = (packed["text_ids"] > 0).long()
        if decoder:
            there = lay_out(decoder, sides[1], together, shortest[1])
            packed |= {"decoder_position_ids": there.pop("position_ids"), "decoder_text_ids": there.pop("text_ids")}
            packed |= there
        return packed
