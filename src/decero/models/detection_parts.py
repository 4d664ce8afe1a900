"""Define the parts of a detector: a backbone as stem, positions of a map and of boxes, who sees whom.

Dimensions: B batch, C channels, h and w height and width of a map, M its places, Q queries, G groups of denoising
queries, T objects, L all queries, D model.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone

from .embeddings import sinusoidal_positions


class FrozenBatchNorm2d(nn.Module):
    """Apply a batch norm with the statistics, weight and bias that it has: none of them changes."""

    def __init__(self, norm):
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x_BChw):
        scale_C = self.weight * (self.running_var + self.eps).rsqrt()
        return x_BChw * scale_C[:, None, None] + (self.bias - self.running_mean * scale_C)[:, None, None]


class BackboneStem(nn.Module):
    """Project the last feature map of a backbone of transformers. Its batch norms are frozen: section 3.2."""

    def __init__(self, config):
        super().__init__()
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        norms = [name for name, module in self.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
        for name in norms:
            self.backbone.set_submodule(name, FrozenBatchNorm2d(self.backbone.get_submodule(name)))
        self.projection = nn.Conv2d(self.backbone.channels[-1], config.hidden_size, 1)

    def forward(self, pixel_values_BCYX):
        return self.projection(self.backbone(pixel_values_BCYX).feature_maps[-1])


def sine_positions(seen_Bhw, hidden_size):
    """Return positions of a map, (batch, places, model): half for the row, half for the column (appendix A.4).

    seen_Bhw: True for places of the image, False for padding. The last place of an image has the position 2 pi.
    """
    shares = []
    for axis in (1, 2):
        place_Bhw = seen_Bhw.cumsum(axis, dtype=torch.float32)
        shares.append(place_Bhw / (place_Bhw.narrow(axis, -1, 1) + 1e-6))
    return coordinate_positions(torch.stack(shares, dim=-1), hidden_size).flatten(1, 2)


def coordinate_positions(shares, hidden_size):
    """Return sines and cosines of numbers in [0, 1], `hidden_size / 2` for each, side by side."""
    return sinusoidal_positions(shares * 2 * math.pi, hidden_size // 2).flatten(-2)


class Perceptron(nn.Module):
    """Apply linear layers with ReLU between them."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def denoising_mask(num_queries, real_BGT):
    """Return who sees whom, bool (batch, 1, queries, queries): DN-DETR, Li et al. 2022, section 4.3.

    Nobody sees a denoising query but those of its own group, so no answer leaks. Those see all that look for objects.
    real_BGT: False for padding.
    """
    _, G, T = real_BGT.shape
    group_N = torch.arange(1, G + 1, device=real_BGT.device).repeat_interleave(T)
    group_L = F.pad(group_N, (num_queries, 0))  # 0: the queries that look for objects
    sees_LL = (group_L[None, :] == 0) | (group_L[None, :] == group_L[:, None])
    real_BL = F.pad(real_BGT.flatten(1), (num_queries, 0), value=True)
    return (sees_LL & real_BL[:, None, :]).unsqueeze(1)
