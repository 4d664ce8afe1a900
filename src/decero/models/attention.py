"""Attention: one readable function, and the module that projects into and out of it.

Dimensions: B batch, L length, M memory (key) length, D model, H heads, G key-value heads, K head size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .compatibility import attention_function, known_memory


def softmax_or_zero(scores_BHLM):
    """Softmax over the last axis; a row whose every score is -inf gives zeros, in value and in gradient, not NaN."""
    empty_BHL1 = scores_BHLM.isneginf().all(dim=-1, keepdim=True)
    return scores_BHLM.masked_fill(empty_BHL1, 0.0).softmax(dim=-1).masked_fill(empty_BHL1, 0.0)


def scaled_dot_product_attention(q_BHLK, k_BHMK, v_BHMK, bias_BHLM=None, *, scale=None, dropout=0.0):
    """softmax(q k^T * scale + bias) v: Vaswani et al. 2017, eq. 1. Returns the mix and the weights.

    q_BHLK: (batch, heads, length, head size); k_BHMK, v_BHMK: (batch, heads, memory, head size).
    bias_BHLM: added to the scores; -inf hides a position. A row with every position hidden returns zeros, not NaN.
    scale: 1/sqrt(head size) unless given (T5 uses 1). dropout: of the weights; the caller gives 0 in evaluation.
    """
    scale = q_BHLK.shape[-1] ** -0.5 if scale is None else scale
    scores_BHLM = q_BHLK @ k_BHMK.mT * scale
    if bias_BHLM is not None:
        scores_BHLM = scores_BHLM + bias_BHLM
    weights_BHLM = F.dropout(softmax_or_zero(scores_BHLM), dropout)
    return weights_BHLM @ v_BHMK, weights_BHLM


def eager_attention_forward(
    module, q_BHLK, k_BGMK, v_BGMK, attention_mask_B1LM=None, *, scaling=None, dropout=0.0, **kwargs
):
    """`scaled_dot_product_attention` behind the signature that transformers gives every attention backend.

    Returns the mix as (batch, length, heads, head size) and the weights as (batch, heads, length, memory).
    """
    groups = module.num_key_value_groups
    k_BHMK, v_BHMK = k_BGMK.repeat_interleave(groups, dim=1), v_BGMK.repeat_interleave(groups, dim=1)
    bias_B1LM = attention_mask_B1LM
    if bias_B1LM is not None and bias_B1LM.dtype == torch.bool:
        bias_B1LM = torch.zeros_like(bias_B1LM, dtype=q_BHLK.dtype).masked_fill(~bias_B1LM, float("-inf"))
    elif bias_B1LM is not None:  # transformers hides with the lowest finite number: a row of those would become uniform
        bias_B1LM = bias_B1LM.masked_fill(bias_B1LM == torch.finfo(bias_B1LM.dtype).min, float("-inf"))
    mix_BHLK, weights_BHLM = scaled_dot_product_attention(
        q_BHLK, k_BHMK, v_BHMK, bias_B1LM, scale=scaling, dropout=dropout
    )
    return mix_BHLK.transpose(1, 2), weights_BHLM


def rotate(x_BHLK, cos_BL1K, sin_BL1K):
    """Turn each pair of features by its position's angle: Su et al. 2021, eq. 34, in GPT-NeoX's half-and-half order."""
    first, second = x_BHLK.chunk(2, dim=-1)
    return x_BHLK * cos_BL1K + torch.cat((-second, first), dim=-1) * sin_BL1K


def gather_positions(x, selected_BS, dim):
    """What stands at each row's own places: `x`, whose first dimension is the batch, (batch, asked) along `dim`."""
    index = selected_BS.view(selected_BS.shape[0], *[1] * (dim - 1), -1, *[1] * (x.dim() - dim - 1))
    return torch.take_along_dim(x, index, dim)


class MultiHeadAttention(nn.Module):
    """Vaswani et al. 2017, section 3.2.2, with grouped key-value heads (Ainslie et al. 2023) and rotary positions."""

    def __init__(self, config, layer_idx, is_causal=False):
        super().__init__()
        D, H, G, K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = K
        self.num_key_value_groups = H // G
        self.scaling = K**-0.5 if config.scale_attn_weights else 1.0
        self.attention_dropout = config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(D, H * K, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, G * K, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, G * K, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * K, D, bias=config.attention_bias)
        if not config.scale_attn_weights:  # T5 has its 1/sqrt(head size) in the queries it starts from
            self.q_proj.initializer_gain = K**-0.5

    def heads(self, x_BLD):
        """(batch, length, heads x head size) -> (batch, heads, length, head size)."""
        return x_BLD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, memory_BMD, rotary, past_key_values):
        """Keys and values of what is looked at: the new tokens, and those that the cache remembers."""
        k_BGMK, v_BGMK = self.heads(self.k_proj(memory_BMD)), self.heads(self.v_proj(memory_BMD))
        if rotary is not None:
            k_BGMK = rotate(k_BGMK, *rotary)
        if past_key_values is not None:
            k_BGMK, v_BGMK = past_key_values.update(k_BGMK, v_BGMK, self.layer_idx)
        return k_BGMK, v_BGMK

    def forward(
        self, hidden_BLD, attention_mask=None, rotary=None, past_key_values=None, memory_BMD=None, selected_BS=None,
        **kwargs,
    ):  # fmt: skip
        """What `hidden_BLD` asks of `memory_BMD`, or of itself: (batch, length, model), and from the eager backend the
        weights (batch, heads, length, memory).

        hidden_BLD: (batch, length, model). memory_BMD: (batch, memory, model). attention_mask: None, bool or additive,
        (batch, 1 or heads, length, memory). rotary: cosines and sines, (batch, 1, length, head size) each.
        selected_BS: (batch, asked), the places that ask, where not all do; then there are so many instead of `length`.
        """
        memory_BMD = hidden_BLD if memory_BMD is None else memory_BMD
        k_BGMK, v_BGMK = self.keys_values(memory_BMD, rotary, past_key_values)
        if selected_BS is not None:
            hidden_BLD = gather_positions(hidden_BLD, selected_BS, 1)
            rotary = None if rotary is None else [gather_positions(part, selected_BS, 2) for part in rotary]
            attention_mask = None if attention_mask is None else gather_positions(attention_mask, selected_BS, 2)
        B, L, _ = hidden_BLD.shape
        q_BHLK = self.heads(self.q_proj(hidden_BLD))
        if rotary is not None:
            q_BHLK = rotate(q_BHLK, *rotary)
        attend = attention_function(self.config, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        mix_BLHK, weights_BHLM = attend(
            self, q_BHLK, k_BGMK, v_BGMK, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.o_proj(mix_BLHK.reshape(B, L, -1)), weights_BHLM


class SelfAttention(MultiHeadAttention):
    """Tokens of one text look at each other: all of them, or those within a window (Beltagy et al. 2020)."""

    def __init__(self, config, layer_idx, is_causal=False):
        super().__init__(config, layer_idx, is_causal)
        sliding = config.layer_type(layer_idx) == "sliding_attention"
        self.sliding_window = config.sliding_window if sliding else None

    def forward(self, *args, **kwargs):
        return super().forward(*args, sliding_window=self.sliding_window, **kwargs)


class CrossAttention(MultiHeadAttention):
    """The decoder looks at the encoder's output, whose keys and values are computed once a text: section 3.2.3."""

    def keys_values(self, memory_BMD, rotary, past_key_values):
        if past_key_values is None:
            return super().keys_values(memory_BMD, rotary, None)
        if (remembered := known_memory(past_key_values, self.layer_idx)) is not None:
            return remembered
        return super().keys_values(memory_BMD, rotary, past_key_values.cross_attention_cache)
