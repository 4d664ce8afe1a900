"""Define attention as a plain function, and the modules with its projections.

Dimensions: B batch, L length, M memory (key) length, D model, H heads, G key-value heads, K head size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .compatibility import attention_function, known_memory


def softmax_or_zero(scores_BHLM):
    """Compute softmax over the last axis; a row of only -inf gives zeros, not NaN.

    The gradient of such a row is zero too.
    """
    empty_BHL1 = scores_BHLM.isneginf().all(dim=-1, keepdim=True)
    return scores_BHLM.masked_fill(empty_BHL1, 0.0).softmax(dim=-1).masked_fill(empty_BHL1, 0.0)


def scaled_dot_product_attention(q_BHLK, k_BHMK, v_BHMK, bias_BHLM=None, *, scale=None, dropout=0.0):
    """Compute softmax(q k^T * scale + bias) v and the weights: Vaswani et al. 2017, eq. 1.

    q_BHLK: (batch, heads, length, head size); k_BHMK, v_BHMK: (batch, heads, memory, head size).
    bias_BHLM: added to the scores; -inf hides a position. A row with every position hidden returns zeros, not NaN.
    scale: 1/sqrt(head size) unless given (T5 uses 1). dropout: for the weights; pass 0 in evaluation.
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
    """Call `scaled_dot_product_attention` with the backend signature of transformers.

    Returns the mix as (batch, length, heads, head size) and the weights as (batch, heads, length, memory).
    """
    groups = module.num_key_value_groups
    k_BHMK, v_BHMK = k_BGMK.repeat_interleave(groups, dim=1), v_BGMK.repeat_interleave(groups, dim=1)
    bias_B1LM = attention_mask_B1LM
    if bias_B1LM is not None and bias_B1LM.dtype == torch.bool:
        bias_B1LM = torch.zeros_like(bias_B1LM, dtype=q_BHLK.dtype).masked_fill(~bias_B1LM, float("-inf"))
    elif (
        bias_B1LM is not None
    ):  # transformers hides with the lowest finite number; a row of only those would be uniform
        bias_B1LM = bias_B1LM.masked_fill(bias_B1LM == torch.finfo(bias_B1LM.dtype).min, float("-inf"))
    mix_BHLK, weights_BHLM = scaled_dot_product_attention(
        q_BHLK, k_BHMK, v_BHMK, bias_B1LM, scale=scaling, dropout=dropout
    )
    return mix_BHLK.transpose(1, 2), weights_BHLM


def rotate(x_BHLK, cos_BL1K, sin_BL1K):
    """Rotate each pair of features by the angle of its position: Su et al. 2021, eq. 34.

    A pair is (i, i + K/2), as in GPT-NeoX.
    """
    first, second = x_BHLK.chunk(2, dim=-1)
    return x_BHLK * cos_BL1K + torch.cat((-second, first), dim=-1) * sin_BL1K


def gather_positions(x, selected_BS, dim):
    """Gather per-row positions (batch, selected) along `dim`; dim 0 of x is the batch."""
    index = selected_BS.view(selected_BS.shape[0], *[1] * (dim - 1), -1, *[1] * (x.dim() - dim - 1))
    return torch.take_along_dim(x, index, dim)


def cast_once(x):
    """Cast `x` to the type of autocast, if it is on. As autocast does, leave float64 alone.

    Several projections read the output of a norm, which is fp32. Autocast would make a copy for each, and one for each
    gradient.
    """
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(kind)) if on else x


def add(x_BLD, positions_BLD):
    """Add positions to hidden states, if there are any."""
    return x_BLD if positions_BLD is None else x_BLD + positions_BLD.to(x_BLD.dtype)


class MultiHeadAttention(nn.Module):
    """Apply multi-head attention, with grouped key-value heads and rotary positions.

    Sources: Vaswani et al. 2017, section 3.2.2; Ainslie et al. 2023 for the groups.
    """

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
        if not config.scale_attn_weights:  # T5 puts 1/sqrt(head size) into the initial query weights
            self.q_proj.initializer_gain = K**-0.5

    def heads(self, x_BLD):
        """Split (batch, length, heads x head size) into (batch, heads, length, head size)."""
        return x_BLD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, memory_BMD, positions_BMD, rotary, past_key_values):
        """Return keys and values of the new tokens, after those in the cache."""
        k_BGMK, v_BGMK = self.heads(self.k_proj(add(memory_BMD, positions_BMD))), self.heads(self.v_proj(memory_BMD))
        if rotary is not None:
            k_BGMK = rotate(k_BGMK, *rotary)
        if past_key_values is not None:
            k_BGMK, v_BGMK = past_key_values.update(k_BGMK, v_BGMK, self.layer_idx)
        return k_BGMK, v_BGMK

    def forward(
        self, hidden_BLD, attention_mask=None, rotary=None, past_key_values=None, memory_BMD=None, selected_BS=None,
        positions_BLD=None, memory_positions_BMD=None, **kwargs,
    ):  # fmt: skip
        """Attend from `hidden_BLD` to `memory_BMD`, or to itself.

        hidden_BLD: (batch, length, model). memory_BMD: (batch, memory, model). attention_mask: None, bool or additive,
        (batch, 1 or heads, length, memory). rotary: cosines and sines, (batch, 1, length, head size) each.
        selected_BS: (batch, selected), positions of the queries to compute; `selected` then replaces `length`.
        positions_BLD, memory_positions_BMD: added to what queries and keys are made of, not to that of the values
        (Carion et al. 2020, appendix A.4). The keys of self-attention have the positions of the queries.
        Returns the output (batch, length, model) and, with eager attention, the weights (batch, heads, length, memory).
        """
        hidden_BLD = cast_once(hidden_BLD)
        if memory_BMD is None:
            memory_BMD, memory_positions_BMD = hidden_BLD, positions_BLD
        memory_BMD = cast_once(memory_BMD)
        k_BGMK, v_BGMK = self.keys_values(memory_BMD, memory_positions_BMD, rotary, past_key_values)
        hidden_BLD = add(hidden_BLD, positions_BLD)
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
    """Attend within one text, to all tokens or to a window (Beltagy et al. 2020)."""

    def __init__(self, config, layer_idx, is_causal=False):
        super().__init__(config, layer_idx, is_causal)
        sliding = config.layer_type(layer_idx) == "sliding_attention"
        # Only kernels without a mask (flash attention) read this. transformers means `sliding_window` tokens behind in
        # a causal model, as we do, and `sliding_window - 1` on each side in both directions, where we count one more.
        self.sliding_window = config.sliding_window + (not is_causal) if sliding else None

    def forward(self, *args, **kwargs):
        return super().forward(*args, sliding_window=self.sliding_window, **kwargs)


class CrossAttention(MultiHeadAttention):
    """Attend from the decoder to the output of the encoder: section 3.2.3.

    A cache keeps its keys and values, so they are computed once per text.
    """

    def forward(self, *args, position_ids=None, **kwargs):
        """As in `MultiHeadAttention`; positions are those of the queries alone, so kernels must not see them."""
        return super().forward(*args, **kwargs)

    def keys_values(self, memory_BMD, positions_BMD, rotary, past_key_values):
        if past_key_values is None:
            return super().keys_values(memory_BMD, positions_BMD, rotary, None)
        if (cached := known_memory(past_key_values, self.layer_idx)) is not None:
            return cached
        return super().keys_values(memory_BMD, positions_BMD, rotary, past_key_values.cross_attention_cache)
