"""Define the layer of a diffusion Transformer and what tells it time and class.

Dimensions: B batch, L length, D model.
"""

import torch.nn.functional as F
from torch import nn

from .embeddings import sinusoidal_positions
from .layers import EncoderLayer

TIME_SCALE = 1000.0  # times in [0, 1] turn the sines as far as the steps 0 ... 1000 of Ho et al. 2020


class ZeroLinear(nn.Linear):
    """Apply a matrix and a bias that start as zeros, so that what they open is closed at first."""

    starts_at_zero = True


class Modulation(nn.Module):
    """Compute `parts` vectors for each image from its condition: SiLU, then a matrix that starts as zeros."""

    def __init__(self, config, parts):
        super().__init__()
        self.parts = parts
        self.act = nn.SiLU()
        self.proj = ZeroLinear(config.hidden_size, parts * config.hidden_size)

    def forward(self, condition_BD):
        """Return `parts` tensors (batch, 1, model)."""
        return self.proj(self.act(condition_BD)).unsqueeze(1).chunk(self.parts, dim=-1)


class ModulatedNorm(nn.Module):
    """Normalise without weights of its own, then shift and scale by what the condition says (adaLN)."""

    def __init__(self, config):
        super().__init__()
        self.eps = config.layer_norm_eps

    def forward(self, hidden_BLD, shift_B1D, scale_B1D):
        return F.layer_norm(hidden_BLD, hidden_BLD.shape[-1:], eps=self.eps) * (1 + scale_B1D) + shift_B1D


class DiffusionLayer(EncoderLayer):
    """Apply an encoder layer whose norms and residuals depend on the condition: adaLN-Zero.

    Each sublayer reads its norm, shifted and scaled, and its output passes a gate. All three start at zero, so the
    layer is the identity at first. Source: Peebles & Xie 2022, section 3.2 and figure 3.
    """

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.pre_attn_norm, self.pre_mlp_norm = ModulatedNorm(config), ModulatedNorm(config)
        self.modulation = Modulation(config, 6)

    def forward(  # type: ignore[override]
        self, hidden_BLD, attention_mask=None, rotary=None, *, condition_BD, **kwargs
    ):
        """Map (batch, length, model) to the same shape. condition_BD: time and class, (batch, model)."""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.modulation(condition_BD)
        read_BLD = self.pre_attn_norm(hidden_BLD, shift_attn, scale_attn)
        mix_BLD, _ = self.mixer(read_BLD, attention_mask, rotary, **kwargs)
        hidden_BLD = hidden_BLD + gate_attn * self.dropout(mix_BLD)
        return hidden_BLD + gate_mlp * self.dropout(self.mlp(self.pre_mlp_norm(hidden_BLD, shift_mlp, scale_mlp)))


class TimeEmbedding(nn.Module):
    """Embed times: sines and cosines, a matrix, SiLU, a matrix (Peebles & Xie 2022, section 3.2)."""

    def __init__(self, config):
        super().__init__()
        self.size = config.time_frequency_size
        self.up_proj = nn.Linear(self.size, config.hidden_size)
        self.act = nn.SiLU()
        self.down_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, time_B):
        waves_BK = sinusoidal_positions(time_B * TIME_SCALE, self.size, interleaved=False)
        return self.down_proj(self.act(self.up_proj(waves_BK.to(self.up_proj.weight.dtype))))
