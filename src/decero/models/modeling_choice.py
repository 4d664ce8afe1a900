"""Define the encoder that chooses among several texts.

Dimensions: B batch, C choices, L length.
"""

from torch import nn
from transformers.loss.loss_utils import ForMaskedLMLoss
from transformers.modeling_outputs import MultipleChoiceModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .heads import classifier_dropout
from .modeling_encoder import DeceroEncoderModel, DeceroEncoderPreTrainedModel


class DeceroEncoderForMultipleChoice(DeceroEncoderPreTrainedModel):
    """Score each choice by one number, from its own text: Devlin et al. 2019, section 4.4 (SWAG)."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderModel(config, add_pooling_layer=True)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None,
        labels=None, **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:  # fmt: skip
        """Return logits (batch, choices) and, with labels, the loss of a softmax over the choices.

        input_ids, attention_mask, token_type_ids, position_ids: (batch, choices, length), or (batch, length) for one
        choice a row. labels: (batch,).
        """
        given = [input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds]
        shape = input_ids.shape if inputs_embeds is None else inputs_embeds.shape[:-1]
        choices = shape[1] if len(shape) == 3 else 1
        if len(shape) == 3:
            given = [None if tensor is None else tensor.flatten(0, 1) for tensor in given]
        outputs = self.model(*given, **kwargs)
        logits_BC = self.classifier(self.dropout(outputs.pooler_output)).view(-1, choices)
        loss = None if labels is None else ForMaskedLMLoss(logits_BC, labels, choices, **kwargs)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits_BC, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
