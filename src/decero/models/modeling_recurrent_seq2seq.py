"""Define the encoder-decoder of LSTMs with additive attention: Bahdanau et al. 2015.

Dimensions: B batch, L length, M memory length, D model, A attention, V vocabulary.
"""

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.loss.loss_utils import ForMaskedLMLoss
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .attention import softmax_or_zero
from .compatibility import CACHE, IgnoresLabels, Seq2SeqLMOutput, Seq2SeqModelOutput, known_memory
from .configuration_recurrent import DeceroRecurrentSeq2SeqConfig
from .mixers import text_mask
from .modeling_encoder_decoder import shift_right
from .modeling_recurrent import DeceroRecurrentModel, DeceroRecurrentPreTrainedModel, LockedDropout, pool_text
from .recurrent_state import hold_states, new_states, state_of


class AdditiveAttention(nn.Module):
    """Score a state against each source token by v^T tanh(W s + U h): Bahdanau et al. 2015, appendix A.1.2."""

    def __init__(self, config):
        super().__init__()
        self.q_proj = nn.Linear(config.hidden_size, config.attention_size)
        self.k_proj = nn.Linear(config.hidden_size, config.attention_size, bias=False)
        self.score = nn.Linear(config.attention_size, 1, bias=False)

    def forward(self, state_BD, k_BMA, memory_BMD, text_BM=None):
        """Return the mix of the memory, (batch, model), and the weights, (batch, memory)."""
        scores_BM = self.score((self.q_proj(state_BD)[:, None] + k_BMA).tanh()).squeeze(-1)
        if text_BM is not None:
            scores_BM = scores_BM.masked_fill(~text_BM, float("-inf"))
        weights_BM = softmax_or_zero(scores_BM)
        return (weights_BM[:, None] @ memory_BMD).squeeze(1), weights_BM


class AttentiveDecoder(nn.Module):
    """Write a text with LSTMs; each step looks at the source: Bahdanau et al. 2015, section 3.1.

    The first layer reads the token and the mix of the source that the state before asks for. The output comes from
    state, mix and token, by one tanh layer instead of the paper's maxout.
    """

    def __init__(self, config):
        super().__init__()
        D, depth = config.hidden_size, config.decoder_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        self.attention = AdditiveAttention(config)
        self.start = nn.Linear(D, depth * D)
        self.cells = nn.ModuleList(nn.LSTMCell(D if i else 2 * D, D) for i in range(depth))
        self.output = nn.Linear(3 * D, D)
        self.embedding_dropout = LockedDropout(config.embedding_dropout)
        self.dropout = LockedDropout(config.hidden_dropout_prob)

    def first_states(self, memory_BMD, text_BM):
        """Return the states before the first token, (batch, model) twice per layer: from the mean of the source."""
        h_BD = self.start(pool_text(memory_BMD, text_BM, "mean")).tanh().chunk(len(self.cells), dim=-1)
        return [(each_BD, torch.zeros_like(each_BD)) for each_BD in h_BD]

    def forward(self, y_BLD, text_BL, memory_BMD, text_BM, past_key_values=None):
        """Read embedded tokens one after another. Returns outputs, states of each layer and weights.

        y_BLD: (batch, length, model). memory_BMD: (batch, memory, model). text_BL, text_BM: what is text, or None.
        Outputs: (batch, length, model); states: one such per layer; weights: (batch, 1, length, memory).
        """
        states, known = None, None
        if past_key_values is not None:
            states = [state_of(past_key_values.self_attention_cache, i) for i in range(len(self.cells))]
            known = known_memory(past_key_values, 0)
        if known is None:
            known = self.attention.k_proj(memory_BMD), memory_BMD
            if past_key_values is not None:
                past_key_values.cross_attention_cache.update(*known, 0)
        if states is None or states[0] is None:
            states = self.first_states(memory_BMD, text_BM)
        y_BLD = self.embedding_dropout(y_BLD)
        masks = [self.dropout(y_BLD.new_ones(len(y_BLD), 1, y_BLD.shape[-1]))[:, 0] for _ in self.cells]
        steps, weights = [], []
        for place, y_BD in enumerate(y_BLD.unbind(dim=1)):
            mix_BD, weights_BM = self.attention(states[-1][0], *known, text_BM)
            read_BD = torch.cat((y_BD, mix_BD), dim=-1)
            for i, cell in enumerate(self.cells):
                new = cell(read_BD, states[i])
                if text_BL is not None:
                    ours_B1 = text_BL[:, place, None]
                    new = tuple(torch.where(ours_B1, *pair) for pair in zip(new, states[i], strict=True))
                states[i], read_BD = new, new[0] * masks[i]
            steps.append((self.output(torch.cat((read_BD, mix_BD, y_BD), dim=-1)).tanh(), *(h for h, _ in states)))
            weights.append(weights_BM)
        if past_key_values is not None:
            for i, (h_BD, c_BD) in enumerate(states):
                past_key_values.self_attention_cache.update(h_BD, c_BD, i, y_BLD.shape[1])
        outputs_BLD, *hidden = (torch.stack(each, dim=1) for each in zip(*steps, strict=True))
        return outputs_BLD, tuple(hidden), torch.stack(weights, dim=1)[:, None]


class DeceroRecurrentSeq2SeqPreTrainedModel(DeceroRecurrentPreTrainedModel):
    """Define what bare model and language model share."""

    config: DeceroRecurrentSeq2SeqConfig
    config_class = DeceroRecurrentSeq2SeqConfig
    _can_record_outputs = None

    def get_expanded_tied_weights_keys(self, all_submodels=False):
        """Always share the embeddings of both sides; `tie_word_embeddings` applies to the head."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels=True)
        tied = dict(self._tied_weights_keys or {})
        return tied if self.config.tie_word_embeddings else {k: v for k, v in tied.items() if "lm_head" not in k}


class DeceroRecurrentSeq2SeqModel(DeceroRecurrentSeq2SeqPreTrainedModel):
    """Read the source with LSTMs in two directions, and write the target looking at it: figure 1."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.encoder = DeceroRecurrentModel(config)
        self.decoder = AttentiveDecoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value):
        self.encoder.embed_tokens = self.decoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None,
        encoder_outputs=None, past_key_values=None, inputs_embeds=None, decoder_inputs_embeds=None, use_cache=None,
        output_attentions=None, output_hidden_states=None, **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:  # fmt: skip
        """Return `last_hidden_state` of the decoder, (batch, length, model).

        input_ids, attention_mask: (batch, memory), the source. decoder_input_ids, decoder_attention_mask: (batch,
        length), the target so far. encoder_outputs: output of an earlier call, instead of `input_ids`.
        output_attentions: also return `cross_attentions`, one tensor (batch, 1, length, memory).
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        wanted = {"states": output_hidden_states, "weights": output_attentions}
        wanted["states"] = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        wanted["weights"] = config.output_attentions if output_attentions is None else output_attentions
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, inputs_embeds=inputs_embeds, use_cache=False, output_attentions=False,
                output_hidden_states=wanted["states"], **kwargs,
            )  # fmt: skip
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError("give exactly one of decoder_input_ids and decoder_inputs_embeds")
        y_BLD = self.decoder.embed_tokens(decoder_input_ids) if decoder_inputs_embeds is None else decoder_inputs_embeds
        memory_BMD = encoder_outputs.last_hidden_state
        if past_key_values is not None:
            hold_states(past_key_values.self_attention_cache, config.decoder_layers)
        elif use_cache:
            past_key_values = EncoderDecoderCache(new_states(config.decoder_layers), DynamicCache())
        outputs_BLD, states, weights_B1LM = self.decoder(
            y_BLD, text_mask(decoder_attention_mask, None, y_BLD), memory_BMD,
            text_mask(attention_mask, None, memory_BMD), past_key_values,
        )  # fmt: skip
        return Seq2SeqModelOutput(
            last_hidden_state=outputs_BLD,
            **{CACHE: past_key_values if use_cache else None},
            decoder_hidden_states=(y_BLD, *states) if wanted["states"] else None,
            cross_attentions=(weights_B1LM,) if wanted["weights"] else None,
            encoder_last_hidden_state=memory_BMD,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )


class DeceroRecurrentSeq2SeqForConditionalGeneration(
    DeceroRecurrentSeq2SeqPreTrainedModel, IgnoresLabels, GenerationMixin
):
    """Translate: the output of each step, with tied embeddings, scores the vocabulary."""

    _tied_weights_keys = {
        "lm_head.weight": "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
    }

    def __init__(self, config):
        super().__init__(config)
        self.model = DeceroRecurrentSeq2SeqModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels):
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None,
        encoder_outputs=None, past_key_values=None, inputs_embeds=None, decoder_inputs_embeds=None, labels=None,
        use_cache=None, **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:  # fmt: skip
        """Return logits (batch, length, vocabulary) and, with labels, the loss.

        labels: as in `DeceroEncoderDecoderForConditionalGeneration`. With labels the cache is off by default.
        """
        use_cache = False if use_cache is None and labels is not None else use_cache
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        items = kwargs.pop("num_items_in_batch", None)  # only for the loss
        outputs = self.model(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, past_key_values,
            inputs_embeds, decoder_inputs_embeds, use_cache, **kwargs,
        )  # fmt: skip
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None if labels is None else ForMaskedLMLoss(logits, labels, self.config.vocab_size, items)
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, **{k: v for k, v in outputs.items() if k != "last_hidden_state"}
        )
