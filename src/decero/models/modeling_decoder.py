"""The decoder, alone or beside an encoder, and the heads it has when alone.

Dimensions: B batch, L length, M memory (key) length, D model, V vocabulary.
"""

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import CrossAttention, SelfAttention
from .compatibility import (
    CACHE,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    self_attention_cache,
)
from .configuration_decero import DeceroDecoderConfig
from .layers import DecoderLayer
from .modeling_stack import DeceroPreTrainedModel, DeceroStack

MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class DeceroDecoderPreTrainedModel(DeceroPreTrainedModel):
    """What every decoder class shares."""

    config: DeceroDecoderConfig
    config_class = DeceroDecoderConfig
    _can_record_outputs = {
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }


class DeceroDecoderModel(DeceroDecoderPreTrainedModel, DeceroStack):
    """A stack of decoder layers over embedded tokens: Vaswani et al. 2017, figure 1, right; alone: Radford et al. 2019.

    A configuration of an encoder-decoder gives `decoder_layers` layers, each of which also looks at the encoder's
    output.
    """

    def __init__(self, config):
        num_layers = config.decoder_layers if config.is_encoder_decoder else config.num_hidden_layers
        super().__init__(config, DecoderLayer, num_layers)
        self.post_init()

    def new_cache(self):
        """Keys and values of what was read, to be filled; with a second half for the encoder's output."""
        if self.config.is_encoder_decoder:
            return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        return DynamicCache(config=self.config)

    def causal_masks(self, attention_mask, hidden_BLD, cache, position_ids):
        """One mask a kind of layer. `generate` hands them over ready-made when it compiles: one, or one a kind.

        A dict of masks is taken as it is; one 4-D mask is cut to the window for the layers that have one.
        """
        masks = {}
        for kind in set(self.layer_types):
            if isinstance(attention_mask, dict):
                mask = attention_mask[kind]
            else:
                mask = MASKS[kind](
                    config=self.config, inputs_embeds=hidden_BLD, attention_mask=attention_mask,
                    position_ids=position_ids, **{CACHE: cache},
                )  # fmt: skip
                if kind == "sliding_attention" and attention_mask is not None and attention_mask.dim() == 4:
                    mask = self.within_window(mask)
            masks[kind] = self.prefer_near(mask, hidden_BLD.shape[1], kind, cache)
        return masks

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """input_ids, position_ids: (batch, length), the new tokens only when there is a cache. attention_mask: (batch,
        past + length), 1 where text is. encoder_hidden_states: (batch, memory, model), encoder_attention_mask: (batch,
        memory). Returns `last_hidden_state` (batch, length, model) and, with `use_cache`, `past_key_values`.

        Rows that hold several texts, one after the other, give `position_ids` that start again with each and no
        `attention_mask`: texts then do not see each other. Raises ValueError unless exactly one of `input_ids` and
        `inputs_embeds` is given, and for a text longer than learned positions reach.
        """
        # Only a cache that was handed over remembers anything; a new one would hide packed rows from the mask builder.
        cache = self_attention_cache(past_key_values)
        past = 0
        if cache is not None:
            past = cache.get_seq_length()
            self.check_length((inputs_embeds if input_ids is None else input_ids).shape[1], past)  # type: ignore[union-attr]
        elif use_cache:
            past_key_values = self.new_cache()
        packing = position_ids  # and only position ids that were given can tell texts apart
        hidden_BLD, position_ids = self.embed(input_ids, inputs_embeds, past, position_ids)
        masks = self.causal_masks(attention_mask, hidden_BLD, cache, packing)
        memory_mask = None
        if encoder_hidden_states is not None:
            memory_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_BLD, attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )  # fmt: skip
        rotary = self.rotary(position_ids, hidden_BLD.dtype)
        for layer, kind in zip(self.layers, self.layer_types, strict=True):
            hidden_BLD = layer(
                hidden_BLD, masks[kind], rotary[kind], encoder_hidden_states, memory_mask,
                **{CACHE: past_key_values}, **kwargs,
            )  # fmt: skip
        remembered = {CACHE: past_key_values if use_cache else None}
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.norm(hidden_BLD), **remembered)  # type: ignore[arg-type]


class DeceroDecoderForCausalLM(DeceroDecoderPreTrainedModel, GenerationMixin):
    """Each token from those before it: Radford et al. 2018, section 3.1."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, logits_to_keep=0, **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """labels: (batch, length), the same tokens as `input_ids` (the loss shifts them), -100 where nothing is asked.
        logits_to_keep: how many of the last positions are projected, or which; 0 is all. Logits: (batch, kept,
        vocabulary). With labels nothing is cached unless `use_cache` says so: training has no use for it.
        """
        use_cache = False if use_cache is None and labels is not None else use_cache
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions,
            **{CACHE: outputs.cache},
        )  # fmt: skip


def last_token(hidden_BLD, input_ids, attention_mask, pad_token_id):
    """What was read last, (batch, model): the last place that is text by the mask, or else by the padding token.

    Raises ValueError for a batch in which neither says where texts end.
    """
    B, L, _ = hidden_BLD.shape
    if attention_mask is not None and attention_mask.dim() == 2:
        text_BL = attention_mask[:, -L:].bool()
    elif input_ids is not None and pad_token_id is not None:
        text_BL = input_ids != pad_token_id
    elif B == 1:
        return hidden_BLD[:, -1]
    else:
        raise ValueError("texts of a batch end where attention_mask or pad_token_id says; give one of them")
    last_B = (torch.arange(L, device=hidden_BLD.device) * text_BL).argmax(dim=-1)
    return hidden_BLD[torch.arange(B, device=hidden_BLD.device), last_B]


class DeceroDecoderForSequenceClassification(DeceroDecoderPreTrainedModel):
    """A label a sequence, from its last token: the only one that has seen all of it (Radford et al. 2018)."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroDecoderModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:  # fmt: skip
        """labels: (batch,) class ids or numbers, or (batch, labels) of 0/1. Logits: (batch, labels)."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=use_cache, **kwargs
        )
        last_BD = last_token(outputs.last_hidden_state, input_ids, attention_mask, self.config.pad_token_id)
        logits = self.score(self.dropout(last_BD))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions,
            **{CACHE: outputs.cache},
        )  # fmt: skip
