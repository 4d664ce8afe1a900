"""Define the convolutional classifier of Kim 2014.

Dimensions: B batch, L length, D embedding, C filters of all kinds.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_recurrent import DeceroTextCNNConfig
from .mixers import text_mask
from .modeling_recurrent import pool_text
from .modeling_stack import DeceroPreTrainedModel


class DeceroTextCNNPreTrainedModel(DeceroPreTrainedModel):
    """Define what bare model and classifier share."""

    config: DeceroTextCNNConfig  # type: ignore[assignment]
    config_class = DeceroTextCNNConfig
    supports_gradient_checkpointing = False  # one layer
    _no_split_modules = []
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = False


class DeceroTextCNNModel(DeceroTextCNNPreTrainedModel):
    """Slide filters of several sizes over the embeddings, and keep the maximum of each: Kim 2014, section 2.

    A window starts at each token of the text. Behind the text it sees zeros, so a short text has windows too.
    """

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.filters = nn.ModuleList(
            nn.Conv1d(config.hidden_size, config.num_filters, size) for size in config.filter_sizes
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Return the features of each window, (batch, length, filters), and their maximum, (batch, filters).

        attention_mask: (batch, length), 1 for text, 0 for padding.
        Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given, and for `output_attentions`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        self.refuse_attentions(kwargs)
        x_BLD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        text_BL = text_mask(attention_mask, None, x_BLD)
        read_BLD = x_BLD if text_BL is None else x_BLD * text_BL[:, :, None]
        read_BDL = read_BLD.transpose(1, 2)
        sizes = self.config.filter_sizes
        features = [conv(F.pad(read_BDL, (0, K - 1))) for conv, K in zip(self.filters, sizes, strict=True)]
        features_BLC = torch.cat(features, dim=1).relu().transpose(1, 2)
        states = (x_BLD, features_BLC) if kwargs.get("output_hidden_states", self.config.output_hidden_states) else None
        return BaseModelOutputWithPooling(
            last_hidden_state=features_BLC, pooler_output=pool_text(features_BLC, text_BL, "max"), hidden_states=states
        )


class DeceroTextCNNForSequenceClassification(DeceroTextCNNPreTrainedModel):
    """Classify a text from the maxima of its filters, with dropout: Kim 2014, section 2.1."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeceroTextCNNModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(len(config.filter_sizes) * config.num_filters, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:  # fmt: skip
        """Return logits (batch, labels) and, with labels, the loss.

        labels: (batch,) class ids or numbers, or (batch, labels) of 0 and 1.
        """
        outputs = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
