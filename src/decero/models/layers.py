"""Define norms, feed-forward layers, encoder layer and decoder layer.

Dimensions: B batch, L length, D model, F feed-forward.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import CrossAttention, cast_once, gather_positions
from .compatibility import self_attention_cache, takes_either_name
from .mixers import MIXERS


class RMSNorm(nn.Module):
    """Compute x / rms(x) * weight in fp32, without mean and bias.

    Source: Zhang & Sennrich 2019, eq. 4.
    """

    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x_BLD):
        scaled_BLD = F.rms_norm(x_BLD.float(), x_BLD.shape[-1:], eps=self.eps)  # one kernel on a GPU
        return self.weight * scaled_BLD.to(x_BLD.dtype)


def build_norm(config, width=None):
    """Build the configured norm. Its statistics are over the features of one token, `hidden_size` by default."""
    width = width or config.hidden_size
    if config.norm_type == "rmsnorm":
        return RMSNorm(width, eps=config.layer_norm_eps)
    return nn.LayerNorm(width, eps=config.layer_norm_eps, bias=config.norm_bias)


class MLP(nn.Module):
    """Compute act(x W_up) W_down at each position: Vaswani et al. 2017, eq. 2. width: None is `intermediate_size`."""

    def __init__(self, config, width=None):
        super().__init__()
        width = width or config.intermediate_size
        self.up_proj = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=config.mlp_bias)
        self.act = build_activation(config.hidden_act)
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x_BLD):
        return self.down_proj(self.dropout(self.act(self.up_proj(x_BLD))))


class GatedMLP(MLP):
    """Compute (act(x W_gate) * x W_up) W_down: Shazeer 2020, eq. 6."""

    def __init__(self, config, width=None):
        super().__init__(config, width)
        self.gate_proj = nn.Linear(config.hidden_size, width or config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x_BLD):
        x_BLD = cast_once(x_BLD)
        return self.down_proj(self.dropout(self.act(self.gate_proj(x_BLD)) * self.up_proj(x_BLD)))


def build_activation(name):
    """Build an activation by its name in transformers.

    `gelu_new` is torch's own tanh approximation: one kernel, equal up to rounding. transformers' takes eight, in fp32.
    """
    return nn.GELU(approximate="tanh") if name == "gelu_new" else ACT2FN[name]


def norm_pair(config):
    """Build the norm before a sublayer and the norm after its residual sum.

    Pre-norm has an identity in the second slot, post-norm in the first.
    """
    if config.norm_placement == "pre":
        return build_norm(config), nn.Identity()
    return nn.Identity(), build_norm(config)


class EncoderLayer(GradientCheckpointingLayer):
    """Apply a mixer, such as attention, and feed-forward with residuals: Vaswani et al. 2017, figure 1, left."""

    is_causal = False

    def __init__(self, config, layer_idx):
        super().__init__()
        self.mixer_name = "self_attn" if config.mixer_type == "attention" else config.mixer_type
        self.add_module(self.mixer_name, MIXERS[config.mixer_type](config, layer_idx, self.is_causal))
        self.mlp = GatedMLP(config, self.mlp_width(config)) if config.gated_mlp else MLP(config, self.mlp_width(config))
        self.pre_attn_norm, self.post_attn_norm = norm_pair(config)
        self.pre_mlp_norm, self.post_mlp_norm = norm_pair(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        if layer_idx == 0 and config.embedding_norm and config.norm_placement == "pre":
            self.pre_attn_norm = nn.Identity()  # embedding_norm has already normalised the input

    @staticmethod
    def mlp_width(config):
        """Return the inner width of the feed-forward."""
        return config.intermediate_size

    @property
    def mixer(self):
        """Return what carries information from token to token."""
        return getattr(self, self.mixer_name)

    def forward(self, hidden_BLD, attention_mask=None, rotary=None, *, selected_BS=None, **kwargs):
        """Map (batch, length, model) to the same shape.

        attention_mask, rotary: as in `MultiHeadAttention`.
        selected_BS: (batch, selected), positions to compute; the result is then (batch, selected, model).
        """
        read_BLD = self.pre_attn_norm(hidden_BLD)
        mix_BLD, _ = self.mixer(read_BLD, attention_mask, rotary, selected_BS=selected_BS, **kwargs)
        hidden_BLD = hidden_BLD if selected_BS is None else gather_positions(hidden_BLD, selected_BS, 1)
        hidden_BLD = self.post_attn_norm(hidden_BLD + self.dropout(mix_BLD))
        hidden_BLD = self.post_mlp_norm(hidden_BLD + self.dropout(self.mlp(self.pre_mlp_norm(hidden_BLD))))
        return hidden_BLD


class DecoderLayer(EncoderLayer):
    """Add a causal mask and, with an encoder, cross-attention to its output: figure 1, right."""

    is_causal = True

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        if config.is_encoder_decoder:
            self.cross_attn = CrossAttention(config, layer_idx)
            self.pre_cross_norm, self.post_cross_norm = norm_pair(config)

    @staticmethod
    def mlp_width(config):
        return config.decoder_intermediate_size or config.intermediate_size

    @takes_either_name
    def forward(
        self, hidden_BLD, attention_mask=None, rotary=None, memory_BMD=None, memory_mask=None, past_key_values=None,
        **kwargs,
    ):  # fmt: skip
        """Map (batch, length, model) to the same shape.

        memory_BMD: (batch, memory, model), output of the encoder. memory_mask: (batch, 1, length, memory).
        Other arguments: as in `MultiHeadAttention`.
        """
        own = self_attention_cache(past_key_values)
        mix_BLD, _ = self.mixer(self.pre_attn_norm(hidden_BLD), attention_mask, rotary, own, **kwargs)
        hidden_BLD = self.post_attn_norm(hidden_BLD + self.dropout(mix_BLD))
        if memory_BMD is not None:
            mix_BLD, _ = self.cross_attn(
                self.pre_cross_norm(hidden_BLD), memory_mask, None, past_key_values, memory_BMD, **kwargs
            )
            hidden_BLD = self.post_cross_norm(hidden_BLD + self.dropout(mix_BLD))
        hidden_BLD = self.post_mlp_norm(hidden_BLD + self.dropout(self.mlp(self.pre_mlp_norm(hidden_BLD))))
        return hidden_BLD
