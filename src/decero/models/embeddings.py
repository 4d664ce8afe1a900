"""Define position embeddings.

Without them a Transformer sees a set of tokens, not their order.
Tables with a formula are computed when used. They are not stored, so there is no table to save, load or outgrow.
"""

import math

import torch
from torch import nn


def embedding_width(config):
    """Return the width of the embeddings: `embedding_size`, or `hidden_size` if it is not set."""
    return config.embedding_size or config.hidden_size


def sinusoidal_positions(position_ids_BL, hidden_size, theta=10000.0, interleaved=True):
    """Compute PE(pos, 2i) = sin(pos / theta^(2i/D)) and PE(pos, 2i+1) = cos(the same).

    interleaved: sines and cosines alternate, as in the paper. Otherwise all sines come first, as in Marian. (In
    tensor2tensor too, but its last wave is a little longer.)
    Returns (batch, length, hidden size) in fp32. Source: Vaswani et al. 2017, section 3.5.
    """
    frequency = theta ** -(torch.arange(0, hidden_size, 2, device=position_ids_BL.device).float() / hidden_size)
    angle = position_ids_BL[..., None].float() * frequency
    if interleaved:
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :hidden_size]
    return torch.cat((angle.sin(), angle.cos()), dim=-1)[..., :hidden_size]


def rotary_positions(position_ids_BL, head_dim, theta=10000.0):
    """Return cosines and sines of the rotation angles: Su et al. 2021, eq. 15.

    Each is (batch, 1, length, head size).
    """
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=position_ids_BL.device).float() / head_dim)
    angle_B1LK = (position_ids_BL[..., None].float() * frequency).repeat(1, 1, 2).unsqueeze(1)
    return angle_B1LK.cos(), angle_B1LK.sin()


class LearnedPositions(nn.Module):
    """Look up one trained vector per position (Gehring et al. 2017; BERT).

    There are `max_position_embeddings` positions. `position_offset` rows come before the first: RoBERTa has 2.
    """

    def __init__(self, config):
        super().__init__()
        self.offset = config.position_offset
        self.embed_positions = nn.Embedding(config.max_position_embeddings + self.offset, embedding_width(config))

    def forward(self, position_ids_BL):
        return self.embed_positions(position_ids_BL + self.offset)


class SinusoidalPositions(nn.Module):
    """Return the fixed sinusoidal positions as a module."""

    def __init__(self, config):
        super().__init__()
        self.hidden_size = embedding_width(config)
        self.interleaved = config.position_embedding_type == "sinusoidal"

    def forward(self, position_ids_BL):
        return sinusoidal_positions(position_ids_BL, self.hidden_size, interleaved=self.interleaved)


class NoPositions(nn.Module):
    """Add nothing: rotary and relative positions act inside attention."""

    def __init__(self, config):
        super().__init__()

    def forward(self, position_ids_BL):
        return 0.0


class RelativePositionBias(nn.Embedding):
    """Add a learned number per head and distance to the scores; all layers share it.

    Each short distance has its own bucket. Longer distances share logarithmically wider buckets. All distances from
    `max_distance` on share one. Source: Raffel et al. 2020, section 2.1.
    """

    def __init__(self, config, is_causal):
        super().__init__(config.relative_attention_num_buckets, config.num_attention_heads)
        self.is_causal = is_causal
        self.max_distance = config.relative_attention_max_distance

    def bucket(self, relative_LM):
        """Return the bucket of each distance, (..., length, memory).

        relative_LM: position of the key minus position of the query. An encoder uses half of the buckets per side.
        """
        buckets = self.num_embeddings if self.is_causal else self.num_embeddings // 2
        ahead_LM = 0 if self.is_causal else (relative_LM > 0) * buckets
        distance_LM = -relative_LM.clamp(max=0) if self.is_causal else relative_LM.abs()
        exact = buckets // 2
        growth_LM = torch.log(distance_LM.float() / exact) / math.log(self.max_distance / exact)
        far_LM = (exact + (growth_LM * (buckets - exact)).long()).clamp(max=buckets - 1)
        return ahead_LM + torch.where(distance_LM < exact, distance_LM, far_LM)

    def forward(self, relative_LM):
        """Map distances (batch, length, memory), or (length, memory), to biases (batch or 1, heads, length, memory)."""
        relative_BLM = relative_LM[None] if relative_LM.dim() == 2 else relative_LM
        return super().forward(self.bucket(relative_BLM)).movedim(-1, 1)


POSITIONS = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "sinusoidal_halves": SinusoidalPositions,
    "rotary": NoPositions,
    "relative": NoPositions,
    "none": NoPositions,
}
