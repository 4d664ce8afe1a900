"""Hide patches of pictures and predict their pixels: SimMIM, Xie et al. 2022."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from decero.execution.image_objective import PictureCollator, of_pictures
from decero.execution.objective import Batch, Objective


@dataclass(frozen=True)
class MaskedPictures:
    """Make a batch of pictures and of patches to hide, with others each epoch.

    grid: height and width of a picture in patches. ratio: share that is hidden. block: patches of a side of a square
    that is hidden as a whole. frozen: treat every epoch as epoch 0, for evaluation.
    The choice is a pure function of (seed, epoch, index). Source: section 3.2 (random masking).
    """

    pictures: PictureCollator
    grid: tuple[int, int]
    ratio: float = 0.6
    block: int = 1
    seed: int = 0
    frozen: bool = False

    def mask(self, epoch: int, index: int) -> np.ndarray:
        """Return the hidden patches of a picture, bool (patches,). Some are hidden and some are not."""
        rng = np.random.default_rng([self.seed, 0 if self.frozen else epoch, index, 2])  # 1 is that of augmentation
        rows, columns = (-(-side // self.block) for side in self.grid)
        count = min(max(round(self.ratio * rows * columns), 1), rows * columns - 1)
        blocks = np.zeros(rows * columns, dtype=bool)
        blocks[rng.permutation(rows * columns)[:count]] = True
        patches = blocks.reshape(rows, columns).repeat(self.block, axis=0).repeat(self.block, axis=1)
        return patches[: self.grid[0], : self.grid[1]].ravel()

    def __call__(self, rows: list[dict]) -> Batch:
        """Return `pixel_values` (batch, channels, height, width) and `bool_masked_pos` (batch, patches)."""
        masks = np.stack([self.mask(row["epoch"], row["index"]) for row in rows])
        return self.pictures(rows) | {"bool_masked_pos": torch.from_numpy(masks)}


def hidden_pixels(batch: Batch) -> int:
    """Return the number of hidden values, of all channels."""
    return int(batch["bool_masked_pos"].sum()) * (batch["pixel_values"].numel() // batch["bool_masked_pos"].numel())


def pixel_distances(model: nn.Module, batch: Batch, grid: tuple[int, int]) -> Tensor:
    """Return the absolute differences of the hidden pixels, summed by picture: (batch,), in fp32."""
    found = model(pixel_values=batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"]).reconstruction
    height, width = (side // patches for side, patches in zip(found.shape[-2:], grid, strict=True))
    hidden = batch["bool_masked_pos"].unflatten(1, grid).repeat_interleave(height, 1).repeat_interleave(width, 2)
    return ((found.float() - batch["pixel_values"]).abs() * hidden[:, None]).sum(dim=(1, 2, 3))


def masked_pictures(collate: MaskedPictures) -> Objective:
    """Sum the absolute differences of the hidden pixels: section 3.4, L1."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return pixel_distances(model, batch, collate.grid).sum()

    return of_pictures(collate, loss, hidden_pixels)
