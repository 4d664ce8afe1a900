"""Define the recurrent networks of before the Transformer: language model, classifier and tagger.

Dimensions: B batch, L length, D model, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .compatibility import CACHE, BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithPast, takes_either_name
from .configuration_recurrent import DeceroRecurrentConfig
from .mixers import RecurrentMixer, text_mask
from .modeling_stack import DeceroPreTrainedModel
from .recurrent_state import hold_states, new_states


class LockedDropout(nn.Dropout):
    """Drop the same features at all positions of a text: Gal & Ghahramani 2016; Merity et al. 2018, section 4.2."""

    def forward(self, hidden_BLD):
        return hidden_BLD * F.dropout(
            hidden_BLD.new_ones(len(hidden_BLD), 1, hidden_BLD.shape[-1]), self.p, self.training
        )


class RecurrentLayer(GradientCheckpointingLayer):
    """Apply one recurrent layer to what dropout leaves; no residual and no norm, as they were built."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.dropout = LockedDropout(config.hidden_dropout_prob if layer_idx else config.embedding_dropout)
        self.mixer = RecurrentMixer(config, layer_idx, is_causal=not config.bidirectional)

    @takes_either_name
    def forward(self, hidden_BLD, text_BL=None, past_key_values=None):
        """Map (batch, length, model) to the same shape. text_BL: what is text, bool; None: all of it."""
        return self.mixer(self.dropout(hidden_BLD), text_BL, None, past_key_values)[0]


class DeceroRecurrentPreTrainedModel(DeceroPreTrainedModel):
    """Define what all recurrent classes share."""

    config: DeceroRecurrentConfig  # type: ignore[assignment]
    config_class: type[DeceroRecurrentConfig] = DeceroRecurrentConfig
    _no_split_modules = ["RecurrentLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = False
    _can_compile_fullgraph = False
    _can_record_outputs: dict | None = {"hidden_states": RecurrentLayer}


class DeceroRecurrentModel(DeceroRecurrentPreTrainedModel):
    """Stack recurrent layers on token embeddings: Mikolov et al. 2010, Merity et al. 2018."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(RecurrentLayer(config, i) for i in range(config.num_hidden_layers))
        self.dropout = LockedDropout(config.output_dropout)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return `last_hidden_state` (batch, length, model) and, in one direction, the states if `use_cache`.

        input_ids: (batch, length), with a cache only the new tokens. attention_mask: (batch, past + length), 1 for
        text, 0 for padding, which is skipped. position_ids: have no effect; those of packed rows are refused.

        Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given, for packed rows, for
        `output_attentions`, and for a cache with two directions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        self.refuse_attentions(kwargs)
        hidden_BLD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is not None and self.config.bidirectional:
            raise ValueError("a cache needs one direction; set bidirectional to false")
        if past_key_values is not None:
            hold_states(past_key_values, len(self.layers))
        elif use_cache and not self.config.bidirectional:
            past_key_values = new_states(len(self.layers))
        text_BL = text_mask(attention_mask, position_ids, hidden_BLD)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, text_BL, **{CACHE: past_key_values})
        returned_cache = {CACHE: past_key_values if use_cache else None}
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(hidden_BLD),
            **returned_cache,  # type: ignore[arg-type]
        )


class DeceroRecurrentForCausalLM(DeceroRecurrentPreTrainedModel, GenerationMixin):
    """Predict each token from those before it, with tied embeddings (Inan et al. 2017; Merity et al. 2018)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        if config.bidirectional:
            raise ValueError("a language model reads in one direction; set bidirectional to false")
        self.model = DeceroRecurrentModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, logits_to_keep=0, **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """Return logits (batch, kept, vocabulary) and, with labels, the loss; as `DeceroDecoderForCausalLM` does."""
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
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, **{CACHE: outputs.cache}
        )


def pool_text(hidden_BLD, text_BL, how):
    """Return the maximum or the mean over the text of each row, (batch, model). text_BL: bool; None: all of it."""
    if text_BL is None:
        return hidden_BLD.amax(dim=1) if how == "max" else hidden_BLD.mean(dim=1)
    text_BL1 = text_BL.unsqueeze(-1)
    if how == "max":
        return hidden_BLD.masked_fill(~text_BL1, torch.finfo(hidden_BLD.dtype).min).amax(dim=1)
    return (hidden_BLD * text_BL1).sum(dim=1) / text_BL1.sum(dim=1).clamp(min=1)


class DeceroRecurrentForSequenceClassification(DeceroRecurrentPreTrainedModel):
    """Classify a text from the maximum, or the mean, of its states: Conneau et al. 2017, section 3.2."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroRecurrentModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None, use_cache=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:  # fmt: skip
        """Return logits (batch, labels) and, with labels, the loss. use_cache: has no effect.

        labels: (batch,) class ids or numbers, or (batch, labels) of 0 and 1.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, use_cache=False, **kwargs)
        text_BL = text_mask(attention_mask, None, outputs.last_hidden_state)
        pooled_BD = pool_text(outputs.last_hidden_state, text_BL, self.config.classifier_pooling)
        logits = self.classifier(self.dropout(pooled_BD))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class DeceroRecurrentForTokenClassification(DeceroRecurrentPreTrainedModel):
    """Label each token, such as named entities: Huang et al. 2015, section 2.2 (BiLSTM), without a CRF."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroRecurrentModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None, use_cache=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:  # fmt: skip
        """Return logits (batch, length, labels) and, with labels, the loss. use_cache: has no effect.

        labels: (batch, length), -100 for positions to ignore.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, use_cache=False, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
