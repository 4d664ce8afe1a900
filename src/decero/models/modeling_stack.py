"""Define the parts that encoder and decoder share, and the interface to transformers.

Dimensions: B batch, L length, M memory (key) length, D model, H heads, K head size.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .compatibility import NAMES, refuses_unknown
from .configuration_shared import StackConfig
from .embeddings import POSITIONS, RelativePositionBias, embedding_width, rotary_positions
from .layers import build_norm
from .rope_scaling import scaled_rotary_positions


def forget_bias(bias_4W):
    """Return the initial biases of an LSTM's gates: 1 for the second, which forgets, else 0."""
    return torch.zeros_like(bias_4W).unflatten(0, (4, -1)).index_fill(0, torch.tensor(1), 1.0).flatten()


class DeceroPreTrainedModel(PreTrainedModel):
    """Define naming, saving, initialisation and attention backends of all models."""

    config: StackConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = list(NAMES)  # the cache stays on the devices of its layers

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self._is_stateful = config.mixer_type != "attention"  # transformers then never takes back written tokens

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = refuses_unknown(cls.forward)

    def refuse_attentions(self, kwargs):
        """Raise ValueError if `output_attentions` is asked of a model without attention."""
        if kwargs.get("output_attentions", self.config.output_attentions):
            raise ValueError(
                f"mixer_type {self.config.mixer_type} has no attention to show: output_attentions needs attention"
            )

    @torch.no_grad()
    def _init_weights(self, module):
        """Draw normal weights with std `initializer_range`, times `initializer_gain` of the module.

        transformers calls this for modules with their own parameters. For code outside of transformers, it calls it
        for no others. Recurrent cells start as in torch, but biases with 0, and with 1 for the forget gate of an LSTM
        (Jozefowicz et al. 2015).
        """
        super()._init_weights(module)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            for name, tensor in module.named_parameters():
                if name.startswith("weight"):
                    init.uniform_(tensor, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
                else:
                    init.zeros_(tensor)
                    if name.startswith("bias_ih") and isinstance(module, nn.LSTM | nn.LSTMCell):
                        init.copy_(tensor, forget_bias(tensor))
        if gain := getattr(module, "initializer_gain", None):
            init.normal_(module.weight, std=self.config.initializer_range * gain)
            padding = getattr(module, "padding_idx", None)
            if padding is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[padding])


class DeceroStack(DeceroPreTrainedModel):
    """Stack embeddings, layers and a final norm: one half of Vaswani et al. 2017, figure 1.

    What is embedded is up to the subclass: tokens (`TokenStack`), patches of an image, queries.
    """

    def __init__(self, config, layer_class, num_layers):
        super().__init__(config)
        if config.position_embedding_type == "rotary":
            config.validate_rope()  # from_pretrained sets fields of a finished configuration
        width = embedding_width(config)
        self.add_embeddings(config)
        if config.position_embedding_type == "relative":
            self.relative_attention_bias = RelativePositionBias(config, layer_class.is_causal)
        self.embed_norm = build_norm(config, width) if config.embedding_norm else nn.Identity()
        same = width == config.hidden_size
        self.embed_projection = nn.Identity() if same else nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(layer_class(config, i) for i in range(num_layers))
        self.layer_types = [config.layer_type(i) for i in range(num_layers)]
        self.norm = build_norm(config) if config.final_norm else nn.Identity()
        self.gradient_checkpointing = False

    def add_embeddings(self, config):
        """Add the modules that embed the input, before the layers. Without any, the input is embedded already."""

    def apply_layers(self, hidden_BLD, masks, position_ids, *memory, selected_BS=None, **kwargs):
        """Apply all layers and the final norm to (batch, length, model).

        masks: one per kind of layer. position_ids: (batch, length), for rotary positions, and for kernels without a
        mask (flash attention), which find the beginnings of packed texts by them. memory: output of an encoder and its
        mask, for a decoder. selected_BS: (batch, selected), positions that the last layer computes.
        Others go to each layer, such as the cache and positions added in each layer (`positions_BLD`).
        Raises ValueError for `output_attentions` of layers without attention.
        """
        if self._is_stateful:
            self.refuse_attentions(kwargs)
        rotary = self.rotary(position_ids, hidden_BLD.dtype)
        for layer, kind in zip(self.layers, self.layer_types, strict=True):
            if selected_BS is not None and layer is self.layers[-1]:
                kwargs["selected_BS"] = selected_BS
            hidden_BLD = layer(hidden_BLD, masks[kind], rotary[kind], *memory, position_ids=position_ids, **kwargs)
        return self.norm(hidden_BLD)

    def rotary(self, position_ids, dtype):
        """Return cosines and sines per kind of layer, (batch, 1, length, head size) each.

        They are None if positions are not rotary. Sliding layers with a base of their own are not scaled, because their
        windows do not grow.
        """
        config = self.config
        if config.position_embedding_type != "rotary":
            return dict.fromkeys(self.layer_types)
        angles = {}
        for kind in set(self.layer_types):
            local = config.local_rope_theta if kind == "sliding_attention" else None
            if config.rope_parameters and local is None:
                cos_B1LK, sin_B1LK = scaled_rotary_positions(position_ids, config)
            else:
                cos_B1LK, sin_B1LK = rotary_positions(position_ids, config.head_dim, local or config.rope_theta)
            angles[kind] = cos_B1LK.to(dtype), sin_B1LK.to(dtype)
        return angles

    def within_window(self, mask_B1LM):
        """Restrict a 4-D mask to the window of sliding layers; transformers does not do this.

        Queries are the last `length` of the `memory` positions.
        """
        L, M = mask_B1LM.shape[-2:]
        ahead_LM = torch.arange(M, device=mask_B1LM.device) - torch.arange(M - L, M, device=mask_B1LM.device)[:, None]
        window = self.config.sliding_window
        near_LM = (ahead_LM.abs() <= window) if not self.layers[0].is_causal else (ahead_LM > -window)
        if mask_B1LM.dtype == torch.bool:
            return mask_B1LM & near_LM
        return mask_B1LM.masked_fill(~near_LM, torch.finfo(mask_B1LM.dtype).min)

    def prefer_near(self, mask, length, kind, past_key_values=None, position_ids=None):
        """Add the biases of relative positions to a mask; with other positions return it unchanged.

        mask: None, bool (True is visible) or additive, (batch, 1, length, memory). kind: kind of layer. position_ids:
        (batch, length), for distances by position; without them, distances count tokens.
        Returns (batch or 1, heads, length, memory); -inf hides. Raises ValueError for a backend without bias support.
        """
        if self.config.position_embedding_type != "relative":
            return mask
        backend = self.config._attn_implementation
        if "flash" in backend or "flex" in backend:
            raise ValueError(f"{backend} does not support relative positions; use sdpa or eager")
        past, memory, first = 0, length, 0
        if past_key_values is not None:
            layer_idx = self.layer_types.index(kind)
            past = past_key_values.get_seq_length(layer_idx)
            memory, first = past_key_values.get_mask_sizes(length, layer_idx)
        device = self.relative_attention_bias.weight.device
        if position_ids is None:
            ahead_LM = (
                torch.arange(memory, device=device) + first - (torch.arange(length, device=device) + past)[:, None]
            )
        else:
            ahead_LM = position_ids[:, None, :] - position_ids[:, :, None]
        bias_BHLM = self.relative_attention_bias(ahead_LM)
        if mask is None:
            causal = self.relative_attention_bias.is_causal
            return bias_BHLM.masked_fill(ahead_LM > 0, float("-inf")) if causal else bias_BHLM
        if mask.dtype == torch.bool:
            return bias_BHLM.masked_fill(~mask, float("-inf"))
        hidden_B1LM = mask == torch.finfo(mask.dtype).min  # transformers marks hidden positions with this value
        return (bias_BHLM + mask).masked_fill(hidden_B1LM, float("-inf"))


class TokenStack(DeceroStack):
    """Embed tokens, segments and positions below the layers."""

    def add_embeddings(self, config):
        width = embedding_width(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        if config.embedding_initializer_range:
            self.embed_tokens.initializer_gain = config.embedding_initializer_range / config.initializer_range
        self.embed_positions = POSITIONS[config.position_embedding_type](config)
        if config.type_vocab_size:
            self.embed_token_types = nn.Embedding(config.type_vocab_size, width)

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def check_length(self, length, past):
        """Raise ValueError if `past + length` tokens exceed the learned positions."""
        limit = self.config.max_position_embeddings if self.config.position_embedding_type == "learned" else None
        if limit is not None and isinstance(past, int) and past + length > limit:  # static caches count in a tensor
            raise ValueError(
                f"{past + length} tokens exceed the {limit} learned positions (max_position_embeddings); truncate"
            )

    def places_of_text(self, input_ids):
        """Count positions without padding tokens, as RoBERTa does: (batch, length), or None for other models.

        In RoBERTa positions begin behind the row of the padding token, which is the position of every padding token.
        """
        pad, offset = self.config.pad_token_id, self.config.position_offset
        if input_ids is None or pad is None or not offset or offset != pad + 1:
            return None
        text_BL = (input_ids != pad).long()
        return text_BL.cumsum(dim=1) * text_BL - 1

    def embed(self, input_ids, inputs_embeds, past=0, position_ids=None, token_type_ids=None):
        """Add embeddings of tokens, segments and positions; apply norm, dropout and projection.

        Returns (batch, length, model) and the position ids.
        Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        config = self.config
        embeds_BLD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        placed_ids = None
        if position_ids is None:
            self.check_length(embeds_BLD.shape[1], past)
            placed_ids = self.places_of_text(input_ids)
            position_ids = (torch.arange(embeds_BLD.shape[1], device=embeds_BLD.device) + past).unsqueeze(0)
        hidden_BLD = embeds_BLD * embeds_BLD.shape[-1] ** 0.5 if config.scale_embeddings else embeds_BLD
        if config.type_vocab_size:  # segments before positions, as in BERT: same order of sums, bit for bit
            types_BL = position_ids.new_zeros(embeds_BLD.shape[:2]) if token_type_ids is None else token_type_ids
            hidden_BLD = hidden_BLD + self.embed_token_types(types_BL)
        hidden_BLD = hidden_BLD + self.embed_positions(position_ids if placed_ids is None else placed_ids)
        hidden_BLD = self.dropout(self.embed_norm(hidden_BLD.to(embeds_BLD.dtype)))
        return self.embed_projection(hidden_BLD), position_ids
