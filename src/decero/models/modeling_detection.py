"""Define the encoder that tells replaced tokens from original ones.

Dimensions: B batch, L length, D model.
"""

import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .layers import build_activation
from .modeling_encoder import DeceroEncoderModel, DeceroEncoderPreTrainedModel


class DiscriminatorPredictions(nn.Module):
    """Map (batch, length, model) to one logit a token, (batch, length): dense, activation, dense."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = build_activation(config.hidden_act)
        self.dense_prediction = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden_BLD):
        return self.dense_prediction(self.activation(self.dense(hidden_BLD))).squeeze(-1)


class DeceroEncoderForPreTraining(DeceroEncoderPreTrainedModel):
    """Tell for each token whether it was replaced: Clark et al. 2020 (ELECTRA), section 2."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderModel(config, add_pooling_layer=False)
        self.discriminator_predictions = DiscriminatorPredictions(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:  # fmt: skip
        """Return logits (batch, length), positive for a replaced token, and with labels the loss.

        labels: (batch, length), 1 for a replaced token, 0 for an original one, -100 for positions to ignore.
        The loss is the mean binary cross-entropy, without padding, as in `ElectraForPreTraining`.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.discriminator_predictions(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            scored = labels != -100
            if attention_mask is not None and attention_mask.dim() == 2:
                scored = scored & attention_mask.bool()
            loss = F.binary_cross_entropy_with_logits(logits[scored].float(), labels[scored].float())
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
