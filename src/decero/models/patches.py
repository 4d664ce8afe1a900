"""Turn images into patch embeddings, and give patches their positions.

Dimensions: B batch, C channels, Y and X height and width in pixels, h and w height and width in patches, P patches,
D model.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .embeddings import sinusoidal_positions


def patchify(pixel_values_BCYX, patch_size):
    """Cut images into patches: (batch, patches, channels x patch height x patch width), row by row."""
    return F.unfold(pixel_values_BCYX, patch_size, stride=patch_size).transpose(1, 2)


def to_map(hidden_BPD, grid_size):
    """Arrange patches (batch, patches, model) as a map (batch, model, height, width)."""
    return hidden_BPD.transpose(1, 2).unflatten(-1, grid_size)


class PatchStem(nn.Conv2d):
    """Multiply each patch by one matrix: Dosovitskiy et al. 2021, eq. 1.

    A convolution whose stride is its size never looks beyond a patch.
    """

    def __init__(self, config):
        super().__init__(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)


class ConvBlock(nn.Sequential):
    """Apply convolution, group norm and ReLU.

    Group norm (Wu & He 2018) has the statistics of one image, so a step does not depend on how it is cut into batches.
    A group has 16 channels; all channels are one group if they cannot be cut so.
    """

    def __init__(self, inputs, outputs, kernel_size, stride=1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
            nn.GroupNorm(outputs // 16 if outputs % 16 == 0 else 1, outputs),
            nn.ReLU(),
        )


class ConvStem(nn.Sequential):
    """Halve an image by 3 x 3 convolutions until a patch is one place: Xiao et al. 2021, section 4.

    The width doubles each time up to `hidden_size`. After each halving, `stem_depth - 1` convolutions keep the size.
    The paper has batch norm, and a depth of 1.
    """

    def __init__(self, config):
        D, halvings = config.hidden_size, config.patch_size.bit_length() - 1
        widths = [config.num_channels, *(max(1, D >> left) for left in reversed(range(halvings)))]
        blocks = []
        for wide, wider in pairwise(widths):
            blocks += [ConvBlock(wide, wider, 3, stride=2)]
            blocks += [ConvBlock(wider, wider, 3) for _ in range(config.stem_depth - 1)]
        super().__init__(*blocks, nn.Conv2d(widths[-1], D, 1))


STEMS = {"patch": PatchStem, "conv": ConvStem}


def grid_positions(height, width, hidden_size, device=None):
    """Return sinusoidal positions of a grid, (height x width, hidden size), row by row.

    The first half of the features stands for the row, the second for the column (Carion et al. 2020, appendix A.4).
    """
    half = hidden_size // 2
    rows_h1D = sinusoidal_positions(torch.arange(height, device=device), half)[:, None]
    columns_1wD = sinusoidal_positions(torch.arange(width, device=device), hidden_size - half)[None]
    return torch.cat((rows_h1D.expand(-1, width, -1), columns_1wD.expand(height, -1, -1)), dim=-1).flatten(0, 1)


class SinusoidalGrid(nn.Module):
    """Return the fixed positions of a grid of any size. Special tokens get zeros."""

    def __init__(self, config):
        super().__init__()
        self.special, self.hidden_size = config.num_special_tokens, config.hidden_size

    def forward(self, grid_size, like):
        height, width = grid_size
        places_PD = grid_positions(height, width, self.hidden_size, like.device).to(like.dtype)
        return F.pad(places_PD, (0, 0, self.special, 0))


class LearnedGrid(nn.Embedding):
    """Look up one trained vector per special token and patch: Dosovitskiy et al. 2021, eq. 1."""

    def __init__(self, config):
        height, width = config.grid_size
        super().__init__(config.num_special_tokens + height * width, config.hidden_size)
        self.special, self.grid_size = config.num_special_tokens, config.grid_size

    def forward(self, grid_size, like):  # type: ignore[override]
        """Return (special tokens + patches, model); another grid is interpolated (section 3.2)."""
        if grid_size == self.grid_size:
            return self.weight
        special_SD, places_PD = self.weight.tensor_split((self.special,))
        map_1Dhw = to_map(places_PD[None], self.grid_size)
        map_1Dhw = F.interpolate(map_1Dhw, size=grid_size, mode="bicubic", align_corners=False)
        return torch.cat((special_SD, map_1Dhw.flatten(2)[0].T))


GRIDS = {"learned": LearnedGrid, "sinusoidal": SinusoidalGrid}
