"""The encoder and its heads.

Dimensions: B batch, L length, D model, K head size, V vocabulary.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .configuration_decero import DeceroEncoderConfig
from .embeddings import POSITIONS, rotary_positions
from .layers import EncoderLayer, build_norm


class DeceroEncoderPreTrainedModel(PreTrainedModel):
    """What every encoder class shares: how it is named, saved, initialised, and which backends it can use."""

    config: DeceroEncoderConfig
    config_class = DeceroEncoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": MultiHeadAttention}
    _can_compile_fullgraph = True


class DeceroEncoderModel(DeceroEncoderPreTrainedModel):
    """A stack of encoder layers over embedded tokens: Vaswani et al. 2017, figure 1, left."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.embed_positions = POSITIONS[config.position_embedding_type](config)
        if config.type_vocab_size:
            self.embed_token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embed_norm = build_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.num_hidden_layers))
        # A pre-norm residual stream is never normalised on its way; post-norm ends on a norm already.
        self.norm = build_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def embed(self, embeds_BLD, token_type_ids, position_ids):
        """Tokens + positions + segments, normalised if the configuration says so: (batch, length, model)."""
        config = self.config
        if config.scale_embeddings:
            embeds_BLD = embeds_BLD * config.hidden_size**0.5
        hidden_BLD = embeds_BLD
        if config.type_vocab_size:  # segments before positions, as in BERT: the same order of sums, the same last bits
            types_BL = position_ids.new_zeros(embeds_BLD.shape[:2]) if token_type_ids is None else token_type_ids
            hidden_BLD = hidden_BLD + self.embed_token_types(types_BL)
        hidden_BLD = hidden_BLD + self.embed_positions(position_ids)
        return self.dropout(self.embed_norm(hidden_BLD.to(embeds_BLD.dtype)))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """input_ids, position_ids, token_type_ids: (batch, length). attention_mask: (batch, length), 1 where text is,
        or (batch, 1, length, length) ready-made. Returns `last_hidden_state` (batch, length, model).

        Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given, and for a text longer than
        learned positions reach (packed rows may be longer: their `position_ids` start again with each text).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        config = self.config
        embeds_BLD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            length, limit = embeds_BLD.shape[1], config.max_position_embeddings
            if length > limit and config.position_embedding_type == "learned":
                raise ValueError(
                    f"{length} tokens, but max_position_embeddings {limit} is all that was learned; truncate"
                )
            position_ids = torch.arange(length, device=embeds_BLD.device).unsqueeze(0)  # type: ignore[assignment]

        hidden_BLD = self.embed(embeds_BLD, token_type_ids, position_ids)
        mask = create_bidirectional_mask(config=config, inputs_embeds=hidden_BLD, attention_mask=attention_mask)
        rotary = None
        if config.position_embedding_type == "rotary":
            cos, sin = rotary_positions(position_ids, config.head_dim, config.rope_theta)
            rotary = cos.to(hidden_BLD.dtype), sin.to(hidden_BLD.dtype)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, mask, rotary, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_BLD))


class MaskedLMHead(nn.Module):
    """Dense, activation, norm (BERT's transform, a slot), then vocabulary scores: (..., model) -> (..., vocabulary)."""

    def __init__(self, config):
        super().__init__()
        self.transform: nn.Module = nn.Identity()
        if config.lm_head_transform:
            dense = nn.Linear(config.hidden_size, config.hidden_size)
            self.transform = nn.Sequential(dense, ACT2FN[config.hidden_act], build_norm(config))
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_BLD):
        return self.decoder(self.transform(hidden_BLD))


class DeceroEncoderForMaskedLM(DeceroEncoderPreTrainedModel):
    """Masked language modelling: Devlin et al. 2019, section 3.1."""

    _tied_weights_keys = {"lm_head.decoder.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderModel(config)
        self.lm_head = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:  # fmt: skip
        """labels: (batch, length), -100 where nothing is asked. Logits: (batch, length, vocabulary)."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def pool(hidden_BLD, attention_mask, how):
    """One vector a sequence, (batch, model): the first token, or the mean over the tokens that are text."""
    if how == "cls":
        return hidden_BLD[:, 0]
    if attention_mask is None or attention_mask.dim() != 2:
        return hidden_BLD.mean(dim=1)
    weight_BL1 = attention_mask.unsqueeze(-1).to(hidden_BLD.dtype)
    return (hidden_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1).clamp(min=1)


def classifier_dropout(config):
    """`classifier_dropout`, or the model's own dropout when it is not set."""
    set_apart = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if set_apart is None else set_apart)


class DeceroEncoderForSequenceClassification(DeceroEncoderPreTrainedModel):
    """One label, several labels or a number a sequence (`config.problem_type`): Devlin et al. 2019, section 4.1."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroEncoderModel(config)
        self.pooler = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.Tanh())
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:  # fmt: skip
        """labels: (batch,) class ids or numbers, or (batch, labels) of 0/1. Logits: (batch, labels)."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        pooled_BD = pool(outputs.last_hidden_state, attention_mask, self.config.classifier_pooling)
        logits = self.classifier(self.dropout(self.pooler(pooled_BD)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroEncoderForTokenClassification(DeceroEncoderPreTrainedModel):
    """A label a token (named entities, parts of speech): Devlin et al. 2019, section 5.3."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroEncoderModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:  # fmt: skip
        """labels: (batch, length), -100 where nothing is asked. Logits: (batch, length, labels)."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroEncoderForQuestionAnswering(DeceroEncoderPreTrainedModel):
    """Where an answer starts and ends in the text: Devlin et al. 2019, section 4.2."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        start_positions=None, end_positions=None, **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:  # fmt: skip
        """start_positions, end_positions: (batch,). Start and end logits: (batch, length) each."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits.contiguous(), end_logits=end_logits.contiguous(),
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip
