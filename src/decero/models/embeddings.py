"""Positions: what tells the Transformer, which sees a set, that text has an order.

Tables that follow from a formula are computed where they are used and stored nowhere: nothing to save, load or outgrow.
"""

import math

import torch
from torch import nn


def sinusoidal_positions(position_ids_BL, hidden_size, theta=10000.0, interleaved=True):
    """PE(pos, 2i) = sin(pos / theta^(2i/D)), PE(pos, 2i+1) = cos(same): Vaswani et al. 2017, section 3.5.

    Sine and cosine interleave, as in the paper, or all sines come first, as in Marian (and in tensor2tensor, whose last
    wave is a little longer). Returns (batch, length, hidden size) in fp32.
    """
    frequency = theta ** -(torch.arange(0, hidden_size, 2, device=position_ids_BL.device).float() / hidden_size)
    angle = position_ids_BL[..., None].float() * frequency
    if interleaved:
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :hidden_size]
    return torch.cat((angle.sin(), angle.cos()), dim=-1)[..., :hidden_size]


def rotary_positions(position_ids_BL, head_dim, theta=10000.0):
    """Cosine and sine of each position's angles, twice (batch, 1, length, head size): Su et al. 2021, eq. 15."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=position_ids_BL.device).float() / head_dim)
    angle_B1LK = (position_ids_BL[..., None].float() * frequency).repeat(1, 1, 2).unsqueeze(1)
    return angle_B1LK.cos(), angle_B1LK.sin()


class LearnedPositions(nn.Module):
    """One trained vector a position (Gehring et al. 2017; BERT): knows no position beyond `max_position_embeddings`.

    `position_offset` rows stand before the first position: RoBERTa counts from 2.
    """

    def __init__(self, config):
        super().__init__()
        self.offset = config.position_offset
        self.embed_positions = nn.Embedding(config.max_position_embeddings + self.offset, config.hidden_size)

    def forward(self, position_ids_BL):
        return self.embed_positions(position_ids_BL + self.offset)


class SinusoidalPositions(nn.Module):
    """The fixed waves of the paper, as a slot."""

    def __init__(self, config):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.interleaved = config.position_embedding_type == "sinusoidal"

    def forward(self, position_ids_BL):
        return sinusoidal_positions(position_ids_BL, self.hidden_size, interleaved=self.interleaved)


class NoPositions(nn.Module):
    """Adds nothing: rotary and relative positions act inside attention, and `none` means none."""

    def __init__(self, config):
        super().__init__()

    def forward(self, position_ids_BL):
        return 0.0


class RelativePositionBias(nn.Embedding):
    """A number per head and distance, added to the scores: Raffel et al. 2020, section 2.1. All layers share it.

    Short distances have a bucket each; longer ones share logarithmically wider buckets, and from `max_distance` on one.
    """

    def __init__(self, config, is_causal):
        super().__init__(config.relative_attention_num_buckets, config.num_attention_heads)
        self.is_causal = is_causal
        self.max_distance = config.relative_attention_max_distance

    def bucket(self, relative_LM):
        """relative_LM: how far ahead of its query each key stands. An encoder has half the buckets for either side."""
        buckets = self.num_embeddings if self.is_causal else self.num_embeddings // 2
        ahead_LM = 0 if self.is_causal else (relative_LM > 0) * buckets
        distance_LM = -relative_LM.clamp(max=0) if self.is_causal else relative_LM.abs()
        exact = buckets // 2
        growth_LM = torch.log(distance_LM.float() / exact) / math.log(self.max_distance / exact)
        far_LM = (exact + (growth_LM * (buckets - exact)).long()).clamp(max=buckets - 1)
        return ahead_LM + torch.where(distance_LM < exact, distance_LM, far_LM)

    def forward(self, relative_LM):
        """(length, memory) distances -> (1, heads, length, memory)."""
        return super().forward(self.bucket(relative_LM)).permute(2, 0, 1).unsqueeze(0)


POSITIONS = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "sinusoidal_halves": SinusoidalPositions,
    "rotary": NoPositions,
    "relative": NoPositions,
    "none": NoPositions,
}
