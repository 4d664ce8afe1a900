"""Define the decoder, alone or with an encoder, and the heads of a decoder alone.

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
from transformers.modeling_outputs import QuestionAnsweringModelOutput, TokenClassifierOutput
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
from .mixers import text_mask
from .modeling_stack import DeceroPreTrainedModel, TokenStack
from .recurrent_state import hold_states, new_states

MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class DeceroDecoderPreTrainedModel(DeceroPreTrainedModel):
    """Define what all decoder classes share."""

    config: DeceroDecoderConfig
    config_class = DeceroDecoderConfig
    _can_record_outputs = {
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }


class DeceroDecoderModel(DeceroDecoderPreTrainedModel, TokenStack):
    """Apply a stack of decoder layers to embedded tokens.

    With the configuration of an encoder-decoder it has `decoder_layers` layers, each with cross-attention.
    Sources: Vaswani et al. 2017, figure 1, right; a decoder alone: Radford et al. 2019.
    """

    def __init__(self, config):
        num_layers = config.decoder_layers if config.is_encoder_decoder else config.num_hidden_layers
        super().__init__(config, DecoderLayer, num_layers)
        self.post_init()

    def new_cache(self):
        """Return an empty cache; with an encoder it has a second part for the encoder output."""
        if self.config.is_encoder_decoder:
            return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        if self._is_stateful:
            return new_states(len(self.layers))
        return DynamicCache(config=self.config)

    def causal_masks(self, attention_mask, hidden_BLD, cache, position_ids):
        """Return one mask per kind of layer.

        Compiled `generate` passes finished masks: a dict with one mask per kind, used as it is, or one 4-D mask, which
        is restricted to the window for sliding layers.
        """
        if self._is_stateful:
            return dict.fromkeys(self.layer_types, text_mask(attention_mask, position_ids, hidden_BLD))
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
        """Return `last_hidden_state` (batch, length, model) and the cache if `use_cache`.

        input_ids, position_ids: (batch, length), with a cache only the new tokens.
        attention_mask: (batch, past + length), 1 for text, 0 for padding.
        encoder_hidden_states: (batch, memory, model). encoder_attention_mask: (batch, memory).
        Packed rows: `position_ids` start again at 0 with each text, without `attention_mask`. Then texts do not see
        each other.

        Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given, and if a text is longer than
        the learned positions.
        """
        # Pass on only a given cache: with a new, empty one the mask builder does not detect packed rows.
        cache = self_attention_cache(past_key_values)
        past = 0
        if cache is not None:
            if self._is_stateful:
                hold_states(cache, len(self.layers))
            past = cache.get_seq_length()
            self.check_length((inputs_embeds if input_ids is None else input_ids).shape[1], past)  # type: ignore[union-attr]
        elif use_cache:
            past_key_values = self.new_cache()
        packing = position_ids  # only given position ids can separate texts
        hidden_BLD, position_ids = self.embed(input_ids, inputs_embeds, past, position_ids)
        masks = self.causal_masks(attention_mask, hidden_BLD, cache, packing)
        memory_mask = None
        if encoder_hidden_states is not None:
            memory_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_BLD, attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )  # fmt: skip
        hidden_BLD = self.apply_layers(
            hidden_BLD, masks, position_ids, encoder_hidden_states, memory_mask, **{CACHE: past_key_values}, **kwargs
        )
        returned_cache = {CACHE: past_key_values if use_cache else None}
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_BLD, **returned_cache)  # type: ignore[arg-type]


class DeceroDecoderForCausalLM(DeceroDecoderPreTrainedModel, GenerationMixin):
    """Predict each token from those before it: Radford et al. 2018, section 3.1."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # as Llama writes it

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
        """Return logits (batch, kept, vocabulary) and, with labels, the loss.

        labels: (batch, length), the same tokens as `input_ids`, -100 for positions to ignore; the loss shifts them.
        logits_to_keep: number of last positions to project, or their indices; 0 means all.
        With labels the cache is off by default, because training does not use it.
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
    """Return the hidden state of the last token of each text, (batch, model).

    attention_mask, or else pad_token_id, tells where a text ends. Raises ValueError for a batch without both.
    """
    B, L, _ = hidden_BLD.shape
    if attention_mask is not None and attention_mask.dim() == 2:
        text_BL = attention_mask[:, -L:].bool()
    elif input_ids is not None and pad_token_id is not None:
        text_BL = input_ids != pad_token_id
    elif B == 1:
        return hidden_BLD[:, -1]
    else:
        raise ValueError("cannot find the ends of texts in a batch; give attention_mask or set pad_token_id")
    last_B = (torch.arange(L, device=hidden_BLD.device) * text_BL).argmax(dim=-1)
    return hidden_BLD[torch.arange(B, device=hidden_BLD.device), last_B]


class DeceroDecoderForSequenceClassification(DeceroDecoderPreTrainedModel):
    """Classify a text from its last token, which has seen all others (Radford et al. 2018)."""

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
        """Return logits (batch, labels) and, with labels, the loss.

        labels: (batch,) class ids or numbers, or (batch, labels) of 0 and 1.
        """
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


class DeceroDecoderForTokenClassification(DeceroDecoderPreTrainedModel):
    """Label each token from it and the tokens before it: a decoder reads only to the left.

    Its parameters have the names of transformers' `GenericForTokenClassification`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroDecoderModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:  # fmt: skip
        """Return logits (batch, length, labels) and, with labels, the loss.

        labels: (batch, length), -100 for positions to ignore.
        The output holds no cache, so the model fills one only if `use_cache` is given.
        """
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=bool(use_cache), **kwargs
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroDecoderForQuestionAnswering(DeceroDecoderPreTrainedModel):
    """Find start and end of an answer in a context that follows the question: Devlin et al. 2019, section 4.2."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroDecoderModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        start_positions=None, end_positions=None, use_cache=None, **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:  # fmt: skip
        """Return start and end logits, (batch, length) each, and with positions, (batch,) each, the loss."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=use_cache, **kwargs
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits.contiguous(), end_logits=end_logits.contiguous(),
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip
