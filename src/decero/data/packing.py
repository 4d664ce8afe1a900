"""Packing: put several texts in one row to avoid padding. A text never attends to another text.

Packing only changes the layout of a step's examples. The loss and the gradient are those of the padded batch, so a run
may switch packing on or off in the middle.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decero.data.sizes import Sizes, sizes_of

Batch = dict[str, Tensor]
FILL = {"labels": -100}  # the value at padding; 0 for other tensors


def best_fit(lengths: Sequence[Sequence[int]], capacities: Sequence[int]) -> list[list[int]]:
    """Choose which texts share a row, by best-fit decreasing. Return the text numbers of each row.

    lengths: one or more lengths per text (source, target). The sums in a row stay within `capacities`; a text that is
    longer gets a row of its own. The first length decides which row fits best.

    Uses at most 11/9 of the smallest possible number of rows (Johnson et al. 1974).
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
    """Move the tokens of padded texts (batch, length) to packed rows (rows, row length).

    real_BL: bool, True at tokens, False at padding. rows: the texts of each row, from `best_fit`.
    shortest: the minimum row length.
    Adds `position_ids`, which restart at 0 with each text, and `text_ids`: the number of a token's text in the batch,
    counted from 1; 0 is padding. A batch that has them keeps its own.
    """
    lengths = real_BL.sum(dim=1).tolist()  # Python numbers: reading each from the tensor took half of the time
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
    columns = {"position_ids": (position_N, 0), "text_ids": (text_N + 1, 0)}
    columns |= {name: (tensor[real_BL], FILL.get(name, 0)) for name, tensor in tensors.items()}
    packed = {}
    for name, (values_N, fill) in columns.items():
        flat = values_N.new_full((len(rows) * C,), fill)
        flat[flat_N] = values_N
        packed[name] = flat.view(len(rows), C)
    return packed


@dataclass
class Packed:
    """Wrap any collator and pack its batches into rows of `capacity` tokens.

    per_text: tensors with one value per text, not per token (labels of a classifier); they stay unchanged.
    full: always make rows `capacity` long, so that a compiler sees one shape.

    If the batch has `decoder_input_ids`, both sides of a text are in the same row, and the decoder's side gets
    `decoder_position_ids` and `decoder_text_ids`.
    """

    collate: Callable[[list[dict]], Batch]
    capacity: int
    decoder_capacity: int = 0
    per_text: tuple[str, ...] = ()
    full: bool = False

    def __call__(self, rows: list[dict]) -> Batch:
        batch = self.collate(rows)
        masks = [mask for name, mask in batch.items() if name.endswith("attention_mask")]
        right_width = batch["input_ids"].shape[1] == self.capacity or not self.full
        if right_width and 2 * batch["input_ids"].shape[1] > self.capacity and all(bool(mask.all()) for mask in masks):
            return batch  # every row is one full text: packing gains nothing, and attention is fastest without a mask
        return self.pack(batch)

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return the collator's example sizes for rows with these token counts."""
        return sizes_of(self.collate, ids_N, labels_N)

    def pack(self, batch: Batch) -> Batch:
        """Pack a padded batch."""
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
            targets = lay_out(decoder, sides[1], together, shortest[1])
            packed |= {"decoder_position_ids": targets.pop("position_ids"), "decoder_text_ids": targets.pop("text_ids")}
            packed |= targets
        return packed
