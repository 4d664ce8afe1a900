"""Define the heads that go from patches back to pixels: SETR, Zheng et al. 2021, section 3.3.

Group norm replaces the batch norm of the paper. The loss resizes the scores to the image, as in other models.
Dimensions: B batch, D model, V labels, h and w height and width of the map.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .patches import ConvBlock


def enlarge(map_BDhw, factor):
    """Enlarge a map by a factor, bilinearly."""
    return F.interpolate(map_BDhw, scale_factor=factor, mode="bilinear", align_corners=False)


class NaiveHead(nn.Sequential):
    """Score each patch by two 1 x 1 convolutions (SETR-Naive). Scores are (batch, labels, h, w)."""

    levels = (-1,)

    def __init__(self, config):
        width = config.decoder_hidden_size
        super().__init__(ConvBlock(config.hidden_size, width, 1), nn.Conv2d(width, config.num_labels, 1))

    def forward(self, maps):
        return super().forward(maps[-1])


class ProgressiveHead(nn.Module):
    """Alternate 3 x 3 convolutions and doubling up to the size of the image (SETR-PUP)."""

    levels = (-1,)

    def __init__(self, config):
        super().__init__()
        width, doublings = config.decoder_hidden_size, config.patch_size.bit_length() - 1
        widths = [config.hidden_size, *[width] * doublings]
        self.blocks = nn.ModuleList(ConvBlock(*pair, 3) for pair in pairwise(widths))
        self.classifier = nn.Conv2d(widths[-1], config.num_labels, 1)

    def forward(self, maps):
        map_BDhw = maps[-1]
        for block in self.blocks:
            map_BDhw = enlarge(block(map_BDhw), 2)
        return self.classifier(map_BDhw)


class MultiLevelHead(nn.Module):
    """Join the maps of several layers, each in its own stream (SETR-MLA).

    A deeper map is added to the next shallower one after its first convolution. The last convolution comes before the
    enlargement: both are linear, so the result is the same and 16 times cheaper.
    """

    def __init__(self, config):
        super().__init__()
        D, width, layers = config.hidden_size, config.decoder_hidden_size, config.num_hidden_layers
        streams = min(4, layers)
        self.levels = tuple(layers * (i + 1) // streams for i in range(streams))
        self.factor = min(4, config.patch_size)
        self.narrow = nn.ModuleList(ConvBlock(D, width, 1) for _ in self.levels)
        self.streams = nn.ModuleList(
            nn.Sequential(ConvBlock(width, width, 3), ConvBlock(width, width, 3), ConvBlock(width, width // 2, 3))
            for _ in self.levels
        )
        self.classifier = nn.Conv2d(streams * (width // 2), config.num_labels, 1)

    def forward(self, maps):
        above, mixed = 0.0, []
        for narrow, stream, map_BDhw in reversed([*zip(self.narrow, self.streams, maps, strict=True)]):
            above = narrow(map_BDhw) + above
            mixed.append(stream(above))
        return enlarge(self.classifier(torch.cat(mixed, dim=1)), self.factor)


DECODE_HEADS = {"naive": NaiveHead, "pup": ProgressiveHead, "mla": MultiLevelHead}
