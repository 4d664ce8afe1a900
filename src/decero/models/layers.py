"""Norms, feed-forward layers, and the encoder layer that joins them to attention by residuals.

Dimensions: B batch, L length, D model, F feed-forward.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MultiHeadAttention


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in fp32: Zhang & Sennrich 2019, eq. 4. No mean is taken away and no bias added."""

    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x_BLD):
        scaled_BLD = x_BLD.float() * torch.rsqrt(x_BLD.float().square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * scaled_BLD.to(x_BLD.dtype)


def build_norm(config):
    """The norm of the configuration: statistics over the features of one token, never over the batch."""
    if config.norm_type == "rmsnorm":
        return RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.norm_bias)


class MLP(nn.Module):
    """act(x W_up) W_down, the same for each position: Vaswani et al. 2017, eq. 2."""

    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x_BLD):
        return self.down_proj(self.act(self.up_proj(x_BLD)))


class GatedMLP(MLP):
    """(act(x W_gate) * x W_up) W_down: Shazeer 2020, eq. 6."""

    def __init__(self, config):
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x_BLD):
        return self.down_proj(self.act(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))


class EncoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each inside a residual. Pre- or post-norm: which pair of slots holds the identity."""

    def __init__(self, config, layer_idx):
        super().__init__()
        pre = config.norm_placement == "pre"
        self.self_attn = MultiHeadAttention(config, layer_idx)
        self.mlp = GatedMLP(config) if config.gated_mlp else MLP(config)
        self.pre_attn_norm = build_norm(config) if pre else nn.Identity()
        self.post_attn_norm = nn.Identity() if pre else build_norm(config)
        self.pre_mlp_norm = build_norm(config) if pre else nn.Identity()
        self.post_mlp_norm = nn.Identity() if pre else build_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BLD, attention_mask=None, rotary=None, **kwargs):
        mix_BLD, _ = self.self_attn(self.pre_attn_norm(hidden_BLD), attention_mask, rotary, **kwargs)
        hidden_BLD = self.post_attn_norm(hidden_BLD + self.dropout(mix_BLD))
        hidden_BLD = self.post_mlp_norm(hidden_BLD + self.dropout(self.mlp(self.pre_mlp_norm(hidden_BLD))))
        return hidden_BLD
