"""Positions: what tells the Transformer, which sees a set, that text has an order.

Tables that follow from a formula are computed where they are used and stored nowhere: nothing to save, load or outgrow.
"""

import torch
from torch import nn


def sinusoidal_positions(position_ids_BL, hidden_size, theta=10000.0):
    """PE(pos, 2i) = sin(pos / theta^(2i/D)), PE(pos, 2i+1) = cos(same): Vaswani et al. 2017, section 3.5.

    Sine and cosine interleave, as in the paper. Returns (batch, length, hidden size) in fp32.
    """
    frequency = theta ** -(torch.arange(0, hidden_size, 2, device=position_ids_BL.device).float() / hidden_size)
    angle = position_ids_BL[..., None].float() * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :hidden_size]


def rotary_positions(position_ids_BL, head_dim, theta=10000.0):
    """Cosine and sine of each position's angles, twice (batch, 1, length, head size): Su et al. 2021, eq. 15."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, device=position_ids_BL.device).float() / head_dim)
    angle_B1LK = (position_ids_BL[..., None].float() * frequency).repeat(1, 1, 2).unsqueeze(1)
    return angle_B1LK.cos(), angle_B1LK.sin()


class LearnedPositions(nn.Module):
    """One trained vector a position (Gehring et al. 2017; BERT): knows no position beyond `max_position_embeddings`."""

    def __init__(self, config):
        super().__init__()
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, position_ids_BL):
        return self.embed_positions(position_ids_BL)


class SinusoidalPositions(nn.Module):
    """The fixed waves of the paper, as a slot."""

    def __init__(self, config):
        super().__init__()
        self.hidden_size = config.hidden_size

    def forward(self, position_ids_BL):
        return sinusoidal_positions(position_ids_BL, self.hidden_size)


class NoPositions(nn.Module):
    """Adds nothing: rotary positions act inside attention, and `none` means none."""

    def __init__(self, config):
        super().__init__()

    def forward(self, position_ids_BL):
        return 0.0


POSITIONS = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rotary": NoPositions,
    "none": NoPositions,
}
