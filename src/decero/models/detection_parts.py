"""Define the parts of a detector: outputs, a backbone as stem, positions of a map and of boxes.

Dimensions: B batch, C channels, h and w height and width of a map, M its places, Q queries, G groups of denoising
queries, T objects, L all queries, D model.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.models.detr.modeling_detr import DetrModelOutput, DetrObjectDetectionOutput

from .embeddings import sinusoidal_positions


@dataclass
class DecodedQueries(BaseModelOutputWithCrossAttentions):
    """Add the states (layers, batch, queries, model) and boxes (layers, batch, queries, 4) of all layers."""

    intermediate_hidden_states: torch.Tensor | None = None
    intermediate_boxes: torch.Tensor | None = None


@dataclass
class DeceroDetectionModelOutput(DetrModelOutput):
    """Add the boxes of all layers of the decoder, (layers, batch, queries, 4).

    With proposals also their logits (batch, places, labels + 1) and boxes (batch, places, 4).
    """

    intermediate_boxes: torch.Tensor | None = None
    proposal_logits: torch.Tensor | None = None
    proposal_boxes: torch.Tensor | None = None


@dataclass
class DeceroObjectDetectionOutput(DetrObjectDetectionOutput):
    """Add classes and boxes of the denoising queries, one dict a layer, the last layer first."""

    denoising_outputs: list[dict] | None = None


class Corrections(nn.Linear):
    """Say how a layer changes the boxes that it gets. At first nothing."""

    starts_at_zero = True


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


def places(seen_Bhw, centred=False):
    """Return where the places of a map are, as shares of the image: (batch, places, 2), row and column.

    seen_Bhw: True for places of the image, False for padding. A place is where its cell ends, as in DETR (the last one
    is at 1); centred: at the centre of its cell, as boxes count.
    """
    shares = []
    for axis in (1, 2):
        place_Bhw = seen_Bhw.cumsum(axis, dtype=torch.float32)
        shares.append((place_Bhw - 0.5 * centred) / (place_Bhw.narrow(axis, -1, 1) + 1e-6))
    return torch.stack(shares, dim=-1).flatten(1, 2)


def coordinate_positions(shares, hidden_size, temperature=10_000):
    """Return sines and cosines of numbers in [0, 1], `hidden_size / 2` for each, side by side (appendix A.4).

    A share of 1 has the position 2 pi.
    """
    return sinusoidal_positions(shares * 2 * math.pi, hidden_size // 2, temperature).flatten(-2)


class Perceptron(nn.Module):
    """Apply linear layers with ReLU between them."""

    def __init__(self, *sizes, last=nn.Linear):
        super().__init__()
        *first, (inputs, outputs) = pairwise(sizes)
        self.layers = nn.ModuleList([*(nn.Linear(*each) for each in first), last(inputs, outputs)])

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
