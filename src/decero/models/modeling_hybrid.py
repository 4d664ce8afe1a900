"""Define the decoder that fills holes.

Dimensions: B batch, L length, D model, V vocabulary.
"""

import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .modeling_decoder import DeceroDecoderModel, DeceroDecoderPreTrainedModel


class DeceroDecoderForMaskedLM(DeceroDecoderPreTrainedModel):
    """Predict masked tokens with a decoder that reads both ways: Charpentier & Samuel 2024 (GPT-BERT), section 3.

    The prediction for a token comes from the token before it (masked next-token prediction). So a text must begin with
    a start token. The weights are those of `DeceroDecoderForCausalLM`, trained with both objectives.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None, use_cache=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:  # fmt: skip
        """Return logits (batch, length, vocabulary) for the tokens themselves and, with labels, the loss.

        attention_mask: (batch, length), 1 for text, 0 for padding; or a finished mask (batch, 1, length, length).
        labels: (batch, length), -100 for positions to ignore. use_cache: has no effect, as holes need no cache.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        B, L = given.shape[:2]
        if attention_mask is None:
            attention_mask = given.new_ones(B, L).bool()
        if attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, :].bool().expand(B, 1, L, L)
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, use_cache=False, **kwargs)
        before_BLD = F.pad(outputs.last_hidden_state[:, :-1], (0, 0, 1, 0))
        logits = self.lm_head(before_BLD)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
