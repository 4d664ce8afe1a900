"""Define what takes the place of attention in a layer: recurrent cells and a gated convolution.

Dimensions: B batch, L length, D model, W width of one direction, S state.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .attention import SelfAttention, gather_positions
from .recurrent_state import state_of


def text_mask(attention_mask, position_ids, hidden_BLD):
    """Return what is text, bool (batch, length), or None if all of it is.

    attention_mask: None or (batch, past + length), 1 for text, 0 for padding. position_ids: only given ones.
    Raises ValueError for masks of who sees whom and for packed rows: a state reads one text from token to token.
    """
    if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.dim() != 2):
        raise ValueError("a model without attention reads a mask of padding (batch, length), not of who sees whom")
    if attention_mask is None:
        compiled = torch.compiler.is_compiling()  # a check would depend on data
        if not compiled and position_ids is not None and (position_ids[:, 1:] <= position_ids[:, :-1]).any():
            raise ValueError("a model without attention carries its state from text to text; pad, do not pack")
        return None
    text_BL = attention_mask[:, -hidden_BLD.shape[1] :].bool()
    return None if not torch.compiler.is_compiling() and text_BL.all() else text_BL


def reading_order(text_BL, backwards=False):
    """Return the order that puts the text of each row first, (batch, length); `backwards`, its last token first."""
    place_L = torch.arange(text_BL.shape[1], device=text_BL.device)
    text_L = -place_L if backwards else place_L
    return torch.where(text_BL, text_L, place_L + text_BL.shape[1]).argsort(dim=1)


def log_g(x):
    """Return log g(x) with g(x) = x + 0.5 for x >= 0 and sigmoid(x) below: Feng et al. 2024, appendix B.3."""
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), F.logsigmoid(x))


class MinGRU(nn.Module):
    """Compute h_t = (1 - z_t) h_(t-1) + z_t g(W_h x_t), z_t = sigmoid(W_z x_t): Feng et al. 2024, section 3.1.

    Neither gate nor candidate reads h, so all steps are one parallel scan, in log space and fp32 (appendix B). It is
    called like `nn.GRU(batch_first=True)`.
    """

    def __init__(self, input_size, hidden_size, batch_first=True):
        super().__init__()
        self.hidden_size = hidden_size
        self.gates = nn.Linear(input_size, 2 * hidden_size)

    def forward(self, x_BLD, h_1BW=None):
        gate_BLW, candidate_BLW = self.gates(x_BLD).float().chunk(2, dim=-1)
        log_keep_BLW, log_new_BLW = F.logsigmoid(-gate_BLW), F.logsigmoid(gate_BLW) + log_g(candidate_BLW)
        if x_BLD.shape[1] == 1:
            kept_BLW = 0.0 if h_1BW is None else log_keep_BLW.exp() * h_1BW.transpose(0, 1)
            h_BLW = kept_BLW + log_new_BLW.exp()
        else:
            decay_BLW = log_keep_BLW.cumsum(dim=1)
            log_h_BLW = decay_BLW + (log_new_BLW - decay_BLW).logcumsumexp(dim=1)
            h_BLW = log_h_BLW.exp() if h_1BW is None else log_h_BLW.exp() + decay_BLW.exp() * h_1BW.transpose(0, 1)
        return h_BLW.to(x_BLD.dtype), h_BLW[:, -1:].transpose(0, 1)


CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "min_gru": MinGRU}


class RecurrentMixer(nn.Module):
    """Read a text token by token with a recurrent cell; in both directions if it is not causal.

    Two directions have half of the width each, side by side (Schuster & Paliwal 1997). Padding is skipped, wherever it
    stands: a row is read as if it were alone. Parameters, D wide, causal and in both directions: LSTM 8 D^2 and 6 D^2
    (and 8 D biases), GRU three quarters of it, RNN a quarter; min-GRU 3 D^2 with its output projection (and 3 D).
    """

    def __init__(self, config, layer_idx, is_causal=False):
        super().__init__()
        D = config.hidden_size
        width = D if is_causal else D // 2
        cell = CELLS[config.mixer_type]
        self.layer_idx = layer_idx
        self.forwards = cell(D, width, batch_first=True)
        self.backwards = None if is_causal else cell(D, width, batch_first=True)
        # The state of a min-GRU is positive; without a projection the residual stream would only grow.
        self.o_proj = nn.Linear(D, D, bias=config.attention_bias) if cell is MinGRU else nn.Identity()

    def forward(
        self, hidden_BLD, attention_mask=None, rotary=None, past_key_values=None, *, selected_BS=None, **kwargs
    ):
        """Map (batch, length, model) to the same shape. Returns it, and None: there are no weights of attention.

        attention_mask: what is text, from `text_mask`. selected_BS: (batch, selected), positions to return.
        """
        text_BL = attention_mask
        if past_key_values is None:
            mixed_BLD = self.direction(self.forwards, hidden_BLD, text_BL)
        else:
            mixed_BLD = self.remember(hidden_BLD, text_BL, past_key_values)
        if self.backwards is not None:
            mixed_BLD = torch.cat((mixed_BLD, self.direction(self.backwards, hidden_BLD, text_BL, True)), dim=-1)
        if selected_BS is not None:
            mixed_BLD = gather_positions(mixed_BLD, selected_BS, 1)
        return self.o_proj(mixed_BLD), None

    def direction(self, cell, hidden_BLD, text_BL, backwards=False):
        """Return the outputs of one direction, (batch, length, width)."""
        if text_BL is None:
            return cell(hidden_BLD.flip(1))[0].flip(1) if backwards else cell(hidden_BLD)[0]
        order_BL = reading_order(text_BL, backwards)
        return gather_positions(cell(gather_positions(hidden_BLD, order_BL, 1))[0], order_BL.argsort(dim=1), 1)

    def remember(self, hidden_BLD, text_BL, cache):
        """Return the causal outputs, and put the state after the last token of each text into the cache."""
        state, L = state_of(cache, self.layer_idx), hidden_BLD.shape[1]
        if text_BL is None:
            mixed_BLW, state = self.advance(hidden_BLD, state)
        else:
            order_BL, length_B = reading_order(text_BL), text_BL.sum(dim=1)
            mixed_BLW, state = self.advance_each(gather_positions(hidden_BLD, order_BL, 1), length_B, state)
            mixed_BLW = gather_positions(mixed_BLW, order_BL.argsort(dim=1), 1)
        cache.update(*state, self.layer_idx, L)
        return mixed_BLW

    def advance(self, read_BLD, state):
        """Read some tokens after a state, a pair of (batch, width). Returns the outputs and the new state."""
        pair = isinstance(self.forwards, nn.LSTM)  # only an LSTM has two parts
        given = None if state is None else tuple(part_BW[None] for part_BW in state)
        mixed_BLW, ends = self.forwards(read_BLD, given if pair or given is None else given[0])
        h_1BW, c_1BW = ends if pair else (ends, ends)
        return mixed_BLW, (h_1BW[0], c_1BW[0])

    def advance_each(self, read_BLD, length_B, state):
        """Read each row up to its own length. Returns the outputs, and the states at these lengths."""
        B, L, _ = read_BLD.shape
        if state is None:
            state = (read_BLD.new_zeros(B, self.forwards.hidden_size),) * 2
        parts, ends, start = [], state, 0
        for end in length_B.unique().tolist():
            if end > start:
                part_BLW, state = self.advance(read_BLD[:, start:end], state)
                parts.append(part_BLW)
            ended_B1 = (length_B == end)[:, None]
            ends = tuple(torch.where(ended_B1, new_BW, old_BW) for new_BW, old_BW in zip(state, ends, strict=True))
            start = end
        parts.append(read_BLD.new_zeros(B, L - start, self.forwards.hidden_size))  # padding
        return torch.cat(parts, dim=1), ends


class GatedConvMixer(nn.Module):
    """Multiply by a gate, convolve each feature over neighbours, multiply by another gate: Poli et al. 2023 (Hyena).

    It is their operator of order 2 (definition 3.1) with a short filter of free weights, as in LFM2 (Liquid AI 2025).
    A decoder's filter sees the tokens before, an encoder's both sides. Parameters: 4 D^2 + K D, K the size of the
    filter.
    """

    def __init__(self, config, layer_idx, is_causal=False):
        super().__init__()
        D, K, bias = config.hidden_size, config.conv_kernel_size, config.attention_bias
        self.layer_idx = layer_idx
        self.before = K - 1 if is_causal else K // 2
        self.behind = K - 1 - self.before
        self.in_proj = nn.Linear(D, 3 * D, bias=bias)
        self.conv = nn.Conv1d(D, D, K, groups=D, bias=bias)
        self.conv.initializer_gain = K**-0.5 / config.initializer_range  # output as large as the input
        self.out_proj = nn.Linear(D, D, bias=bias)

    def forward(
        self, hidden_BLD, attention_mask=None, rotary=None, past_key_values=None, *, selected_BS=None, **kwargs
    ):
        """Map (batch, length, model) to the same shape; arguments and result as in `RecurrentMixer`."""
        text_BL, before = attention_mask, self.before
        gate_BLD, last_gate_BLD, x_BLD = self.in_proj(hidden_BLD).chunk(3, dim=-1)
        x_BLD = gate_BLD * x_BLD
        state = state_of(past_key_values, self.layer_idx)
        state_BSD = x_BLD.new_zeros(len(x_BLD), before, x_BLD.shape[-1]) if state is None else state[0]
        x_BMD = torch.cat((state_BSD, x_BLD), dim=1)
        if text_BL is not None:  # padding goes before the state, so that text follows it, and text ends each row
            text_BM = F.pad(text_BL, (before, 0), value=True)
            order_BM = text_BM.int().argsort(dim=1, stable=True)
            x_BMD = gather_positions(x_BMD * text_BM[:, :, None], order_BM, 1)
        if past_key_values is not None:
            last_BSD = x_BMD[:, x_BMD.shape[1] - before :]
            past_key_values.update(last_BSD, last_BSD, self.layer_idx, x_BLD.shape[1])
        mixed_BLD = self.conv(F.pad(x_BMD, (0, 0, 0, self.behind)).transpose(1, 2)).transpose(1, 2)
        if text_BL is not None:
            place_BL = order_BM.argsort(dim=1)[:, before:] - before
            mixed_BLD = gather_positions(mixed_BLD, place_BL.clamp(min=0), 1)
        mixed_BLD = last_gate_BLD * mixed_BLD
        if selected_BS is not None:
            mixed_BLD = gather_positions(mixed_BLD, selected_BS, 1)
        return self.out_proj(mixed_BLD), None


MIXERS = {"attention": SelfAttention, "conv": GatedConvMixer} | dict.fromkeys(CELLS, RecurrentMixer)
