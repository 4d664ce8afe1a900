"""Define the encoder-decoder: an encoder reads the source, a decoder writes the target.

Dimensions: B batch, L length, M memory (key) length, D model, V vocabulary.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.loss.loss_utils import ForMaskedLMLoss
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .compatibility import CACHE, IgnoresLabels, Seq2SeqLMOutput, Seq2SeqModelOutput
from .configuration_decero import DeceroEncoderDecoderConfig
from .modeling_decoder import DeceroDecoderModel
from .modeling_encoder import DeceroEncoderModel
from .modeling_stack import DeceroPreTrainedModel


def shift_right(labels_BL, start_token_id, pad_token_id):
    """Return the decoder input for `labels`: start token, then all labels but the last.

    Padding replaces -100. Raises ValueError if start or padding token is not set.
    """
    if start_token_id is None or pad_token_id is None:
        raise ValueError("labels need decoder_start_token_id and pad_token_id; set both in the configuration")
    start_B1 = labels_BL.new_full((labels_BL.shape[0], 1), start_token_id)
    shifted_BL = torch.cat((start_B1, labels_BL[:, :-1]), dim=1)
    return shifted_BL.masked_fill(shifted_BL == -100, pad_token_id)


def untrained_bias(projection):
    """Turn the bias of a linear layer into a buffer: it is saved and added, but not trained. Returns the layer."""
    bias_V = projection.bias.detach()
    del projection.bias
    projection.register_buffer("bias", bias_V)
    return projection


class DeceroEncoderDecoderPreTrainedModel(DeceroPreTrainedModel):
    """Define what all encoder-decoder classes share."""

    config: DeceroEncoderDecoderConfig
    config_class = DeceroEncoderDecoderConfig

    def get_expanded_tied_weights_keys(self, all_submodels=False):
        """Always tie the embeddings of both stacks; `tie_word_embeddings` applies to the head."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels=True)
        tied = dict(self._tied_weights_keys or {})
        return tied if self.config.tie_word_embeddings else {k: v for k, v in tied.items() if "lm_head" not in k}


class DeceroEncoderDecoderModel(DeceroEncoderDecoderPreTrainedModel):
    """Join encoder and decoder, which share embeddings: Vaswani et al. 2017, figure 1."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.encoder = DeceroEncoderModel(config, add_pooling_layer=False)
        self.decoder = DeceroDecoderModel(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value):
        self.encoder.embed_tokens = value
        self.decoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Return `last_hidden_state` of the decoder, (batch, length, model).

        input_ids, attention_mask: (batch, memory), the source.
        decoder_input_ids, decoder_attention_mask: (batch, length), the target so far.
        encoder_outputs: output of an earlier call, instead of `input_ids`.
        """
        if self.training and encoder_outputs is None and input_ids is not None and decoder_input_ids is not None:
            # One lookup for both sides, because the gradient of each lookup is as large as the table.
            ids_N = torch.cat((input_ids.flatten(), decoder_input_ids.flatten()))
            read_ND, written_ND = self.encoder.embed_tokens(ids_N).split((input_ids.numel(), decoder_input_ids.numel()))
            inputs_embeds = read_ND.view(*input_ids.shape, -1)  # type: ignore[assignment]
            decoder_inputs_embeds = written_ND.view(*decoder_input_ids.shape, -1)  # type: ignore[assignment]
            input_ids = decoder_input_ids = None
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
            )
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        outputs = self.decoder(
            decoder_input_ids, decoder_attention_mask, decoder_position_ids, past_key_values, decoder_inputs_embeds,
            encoder_outputs.last_hidden_state, attention_mask, use_cache=use_cache, **kwargs,
        )  # fmt: skip
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE: outputs.cache},
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class DeceroEncoderDecoderForConditionalGeneration(DeceroEncoderDecoderPreTrainedModel, IgnoresLabels, GenerationMixin):
    """Write a text from a text: Vaswani et al. 2017 (translation), Raffel et al. 2020."""

    _tied_weights_keys = {
        "lm_head.weight": "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
    }

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroEncoderDecoderModel(config)
        self.set_output_embeddings(nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias))
        self.post_init()

    def set_output_embeddings(self, new_embeddings):
        frozen = self.config.lm_head_bias and not self.config.train_lm_head_bias
        self.lm_head = untrained_bias(new_embeddings) if frozen else new_embeddings

    def prepare_decoder_input_ids_from_labels(self, labels):
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None,
        position_ids=None, decoder_position_ids=None, encoder_outputs=None, past_key_values=None, inputs_embeds=None,
        decoder_inputs_embeds=None, labels=None, use_cache=None, **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:  # fmt: skip
        """Return logits (batch, length, vocabulary) and, with labels, the loss.

        labels: (batch, length), the target, -100 for positions to ignore. Without `decoder_input_ids` the decoder reads
        the labels shifted to the right.
        With labels the cache is off by default, because training does not use it.
        """
        use_cache = False if use_cache is None and labels is not None else use_cache
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        items = {"num_items_in_batch": kwargs.pop("num_items_in_batch", None)}  # only for the loss
        outputs = self.model(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, position_ids, decoder_position_ids,
            encoder_outputs, past_key_values, inputs_embeds, decoder_inputs_embeds, use_cache, **kwargs,
        )  # fmt: skip
        scale = self.config.hidden_size**-0.5 if self.config.scale_lm_head else 1.0
        logits = self.lm_head(outputs.last_hidden_state * scale)
        loss = None
        if labels is not None:  # the decoder's input was shifted, so that labels stand beside their logits as in MLM
            loss = ForMaskedLMLoss(logits, labels, self.config.vocab_size, **items)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: outputs.cache},
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )
