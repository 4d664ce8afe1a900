"""Define the heads of an encoder-decoder that classify, label and answer, and its encoder alone.

Dimensions: B batch, L length, D model.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
    Seq2SeqSequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .modeling_decoder import last_token
from .modeling_encoder import DeceroEncoderModel, classifier_dropout
from .modeling_encoder_decoder import DeceroEncoderDecoderModel, DeceroEncoderDecoderPreTrainedModel


class DeceroEncoderDecoderEncoderModel(DeceroEncoderDecoderPreTrainedModel):
    """Read a text with the encoder alone, as `T5EncoderModel` does."""

    _keys_to_ignore_on_load_unexpected = [r"(^|\.)decoder\.", r"^lm_head\."]

    def __init__(self, config):
        super().__init__(config)
        self.encoder = DeceroEncoderModel(config, add_pooling_layer=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value):
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:  # fmt: skip
        """Return `last_hidden_state` (batch, length, model). attention_mask: as in `DeceroEncoderModel`."""
        return self.encoder(input_ids, attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs)


class DeceroEncoderDecoderForTokenClassification(DeceroEncoderDecoderPreTrainedModel):
    """Label each token with the encoder alone, which sees both sides of it, as `T5ForTokenClassification` does."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroEncoderDecoderEncoderModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:  # fmt: skip
        """Return logits (batch, length, labels) and, with labels, the loss.

        labels: (batch, length), -100 for positions to ignore.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def first_tokens(attention_mask, position_ids, embeds_BLD):
    """Return which tokens begin a text, (batch, length) bool: after padding, or at position 0 of packed rows."""
    first_BL = torch.zeros(embeds_BLD.shape[:2], dtype=torch.bool, device=embeds_BLD.device)
    if attention_mask is None or attention_mask.dim() != 2:
        first_BL[:, 0] = True
        return first_BL if attention_mask is None or position_ids is None else position_ids == 0
    text_BL = attention_mask.bool()
    return text_BL & ~F.pad(text_BL[:, :-1], (1, 0))


class DeceroEncoderDecoderReader(DeceroEncoderDecoderPreTrainedModel):
    """Read a text with the encoder, and again with the decoder: Lewis et al. 2020, section 3."""

    _tied_weights_keys = {"model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight"}

    def read(self, input_ids, attention_mask, position_ids, inputs_embeds, **kwargs):
        """Return the output of the base model. The decoder reads the text one token to the right, as in T5 and BART.

        attention_mask: (batch, length), or a finished mask of packed rows, (batch, 1, length, length), with
        `position_ids`. The first token of a text is the start token, on whichever side padding is.
        Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given, and without a start token.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if self.config.decoder_start_token_id is None:
            raise ValueError("the decoder needs decoder_start_token_id; set it in the configuration")
        embed = self.get_input_embeddings()
        embeds_BLD = embed(input_ids) if inputs_embeds is None else inputs_embeds
        start_D = embed(torch.tensor(self.config.decoder_start_token_id, device=embeds_BLD.device))
        first_BL1 = first_tokens(attention_mask, position_ids, embeds_BLD).unsqueeze(-1)
        before_BLD = torch.where(first_BL1, start_D.to(embeds_BLD.dtype), F.pad(embeds_BLD[:, :-1], (0, 0, 1, 0)))
        backwards = attention_mask
        if attention_mask is not None and attention_mask.dim() == 4:
            later_LL = torch.ones(attention_mask.shape[-2:], dtype=torch.bool, device=embeds_BLD.device).triu(1)
            hidden = False if attention_mask.dtype == torch.bool else torch.finfo(attention_mask.dtype).min
            backwards = attention_mask.masked_fill(later_LL, hidden)
        return self.model(
            attention_mask=attention_mask, inputs_embeds=embeds_BLD, position_ids=position_ids,
            decoder_inputs_embeds=before_BLD, decoder_attention_mask=backwards, decoder_position_ids=position_ids,
            **{**kwargs, "use_cache": False},
        )  # fmt: skip


def seen(outputs):
    """Return hidden states and attentions of both halves, by their names in the outputs of heads."""
    names = ("decoder_hidden_states", "decoder_attentions", "cross_attentions", "encoder_last_hidden_state",
             "encoder_hidden_states", "encoder_attentions")  # fmt: skip
    return {name: getattr(outputs, name) for name in names}


class ClassificationHead(nn.Module):
    """Map (batch, model) to label scores (batch, labels): dense, tanh, dense, as in T5 and BART."""

    def __init__(self, config):
        super().__init__()
        self.dropout = classifier_dropout(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_BD):
        return self.out_proj(self.dropout(self.dense(self.dropout(hidden_BD)).tanh()))


class DeceroEncoderDecoderForSequenceClassification(DeceroEncoderDecoderReader):
    """Classify a text from the decoder's state at its last token: Lewis et al. 2020, section 3.1.

    Stock classes take the last end token, which is the last token of a text that ends with it.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroEncoderDecoderModel(config)
        self.classification_head = ClassificationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqSequenceClassifierOutput:  # fmt: skip
        """Return logits (batch, labels) and, with labels, the loss.

        labels: (batch,) class ids or numbers, or (batch, labels) of 0 and 1.
        """
        outputs = self.read(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        last_BD = last_token(outputs.last_hidden_state, input_ids, attention_mask, self.config.pad_token_id)
        logits = self.classification_head(last_BD)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return Seq2SeqSequenceClassifierOutput(loss=loss, logits=logits, **seen(outputs))


class DeceroEncoderDecoderForQuestionAnswering(DeceroEncoderDecoderReader):
    """Find start and end of an answer in a text from the states of the decoder, as `T5ForQuestionAnswering` does."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderDecoderModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, start_positions=None,
        end_positions=None, **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqQuestionAnsweringModelOutput:  # fmt: skip
        """Return start and end logits, (batch, length) each, and with positions, (batch,) each, the loss."""
        outputs = self.read(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return Seq2SeqQuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits.contiguous(), end_logits=end_logits.contiguous(), **seen(outputs)
        )
