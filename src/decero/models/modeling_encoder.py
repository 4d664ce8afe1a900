"""Define the encoder and its heads.

Dimensions: B batch, L length, D model, V vocabulary.
"""

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SelfAttention
from .configuration_decero import DeceroEncoderConfig
from .embeddings import embedding_width
from .heads import Pooler, classifier_dropout, prediction_head, token_head
from .layers import EncoderLayer
from .mixers import text_mask
from .modeling_stack import DeceroPreTrainedModel, TokenStack

MASKS = {
    "full_attention": create_bidirectional_mask,
    "sliding_attention": create_bidirectional_sliding_window_mask,
}


class DeceroEncoderPreTrainedModel(DeceroPreTrainedModel):
    """Define what all encoder classes share."""

    config: DeceroEncoderConfig
    config_class = DeceroEncoderConfig
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": SelfAttention}


class DeceroEncoderModel(DeceroEncoderPreTrainedModel, TokenStack):
    """Apply a stack of encoder layers to embedded tokens: Vaswani et al. 2017, figure 1, left.

    add_pooling_layer: whether to compute `pooler_output`; None takes `config.pooling_layer`.
    """

    def __init__(self, config, add_pooling_layer=None):
        super().__init__(config, EncoderLayer, config.num_hidden_layers)
        pooled = config.pooling_layer if add_pooling_layer is None else add_pooling_layer
        self.pooler = Pooler(config, config.classifier_pooling) if pooled else None
        self.post_init()

    def bidirectional_masks(self, attention_mask, hidden_BLD, position_ids):
        """Return one mask per kind of layer; `attention_mask` as in `forward`."""
        if self._is_stateful:
            return dict.fromkeys(self.layer_types, text_mask(attention_mask, position_ids, hidden_BLD))
        masks = {}
        for kind in set(self.layer_types):
            if isinstance(attention_mask, dict):
                mask = attention_mask[kind]
            else:
                mask = MASKS[kind](config=self.config, inputs_embeds=hidden_BLD, attention_mask=attention_mask)
                if kind == "sliding_attention" and attention_mask is not None and attention_mask.dim() == 4:
                    mask = self.within_window(mask)
            by_position = position_ids if isinstance(attention_mask, dict) else None
            masks[kind] = self.prefer_near(mask, hidden_BLD.shape[1], kind, position_ids=by_position)
        return masks

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        selected_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Return `last_hidden_state` (batch, length, model).

        With a pooler, also return `pooler_output` (batch, model).
        input_ids, position_ids, token_type_ids: (batch, length).
        attention_mask: (batch, length), 1 for text, 0 for padding; or a finished mask (batch, 1, length, length), or a
        dict with one finished mask per kind of layer. With a dict, relative distances are those of `position_ids`.
        selected_positions: (batch, selected), positions that the last layer computes. `last_hidden_state` is then
        (batch, selected, model), with the same values as without selection.

        Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given, and if a text is longer than
        the learned positions. Packed rows may be longer, because their `position_ids` start again with each text.
        """
        hidden_BLD, position_ids = self.embed(input_ids, inputs_embeds, 0, position_ids, token_type_ids)
        masks = self.bidirectional_masks(attention_mask, hidden_BLD, position_ids)
        hidden_BLD = self.apply_layers(hidden_BLD, masks, position_ids, selected_BS=selected_positions, **kwargs)
        pooled_BD = None if self.pooler is None else self.pooler(hidden_BLD, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_BLD, pooler_output=pooled_BD)


class MaskedLMHead(nn.Module):
    """Map (..., model) to vocabulary scores (..., vocabulary).

    Before the projection come dense, activation and norm (transform of BERT), if configured. The dense layer makes the
    width that of the embeddings. Raises ValueError without it, if that is another one.
    """

    def __init__(self, config):
        super().__init__()
        width = embedding_width(config)
        self.transform: nn.Module = nn.Identity()
        if config.lm_head_transform:
            self.transform = prediction_head(config, width)
        elif width != config.hidden_size:
            raise ValueError(f"embedding_size {width} differs from hidden_size, so lm_head_transform must be true")
        self.decoder = nn.Linear(width, config.vocab_size, bias=config.lm_head_bias)

    def forward(self, hidden_BLD):
        return self.decoder(self.transform(hidden_BLD))


class DeceroEncoderForMaskedLM(DeceroEncoderPreTrainedModel):
    """Predict masked tokens: Devlin et al. 2019, section 3.1."""

    _tied_weights_keys = {"lm_head.decoder.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head.decoder": "colwise_gather_output"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderModel(config, add_pooling_layer=False)
        self.lm_head = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, selected_positions=None, **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:  # fmt: skip
        """Return logits (batch, length, vocabulary) and, with labels, the loss.

        labels: (batch, length), -100 for positions to ignore.
        selected_positions: as in the bare model; labels and logits are then only those of these positions.
        """
        outputs = self.model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, selected_positions, **kwargs
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            # Skip the softmax at ignored positions, which are most. Not when compiled: sizes would depend on data.
            scored = slice(None) if torch.compiler.is_compiling() else labels != -100
            loss = self.loss_function(
                logits=logits[scored], labels=labels[scored], vocab_size=self.config.vocab_size, **kwargs
            )
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroEncoderForSequenceClassification(DeceroEncoderPreTrainedModel):
    """Classify a text: one label, several labels or a number, by `config.problem_type`.

    Source: Devlin et al. 2019, section 4.1.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroEncoderModel(config, add_pooling_layer=True)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:  # fmt: skip
        """Return logits (batch, labels) and, with labels, the loss.

        labels: (batch,) class ids or numbers, or (batch, labels) of 0 and 1.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroEncoderForTokenClassification(DeceroEncoderPreTrainedModel):
    """Label each token, such as named entities: Devlin et al. 2019, section 5.3."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroEncoderModel(config, add_pooling_layer=False)
        self.transform = token_head(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:  # fmt: skip
        """Return logits (batch, length, labels) and, with labels, the loss.

        labels: (batch, length), -100 for positions to ignore.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(self.transform(outputs.last_hidden_state)))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DeceroEncoderForQuestionAnswering(DeceroEncoderPreTrainedModel):
    """Find start and end of an answer in the text: Devlin et al. 2019, section 4.2."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderModel(config, add_pooling_layer=False)
        self.transform = token_head(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        start_positions=None, end_positions=None, **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:  # fmt: skip
        """Return start and end logits, (batch, length) each, and with positions the loss.

        start_positions, end_positions: (batch,).
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(self.transform(outputs.last_hidden_state)).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits.contiguous(), end_logits=end_logits.contiguous(),
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip
