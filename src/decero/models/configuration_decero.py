"""Define the configurations of encoder, decoder and encoder-decoder."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from .configuration_shared import DeceroConfig, SingleStackConfig


@strict
class DeceroEncoderConfig(SingleStackConfig):
    r"""Configure an encoder such as BERT or ModernBERT (Vaswani et al. 2017, figure 1, left).

    Args:
        type_vocab_size: number of segments; with 0, `token_type_ids` are accepted but have no effect.
        embedding_size: width of the embeddings, if not hidden_size (ELECTRA); a linear layer makes one of the other.
        pooling_layer: the bare model also returns `pooler_output`: dense and tanh over the pooled token, as in BERT.
        classifier_pooling: input of the pooler: first token (`cls`) or `mean` over tokens without padding. With `late`
            the pooler reads every token, and the mean is that of its outputs (EuroBERT: Boizard et al. 2025).
        pooler_act: activation of the pooler; BERT has tanh, EuroBERT gelu.
        classifier_head: what heads read that are not pretrained. `pooler`: dense and activation of the pooled text, or
            tokens as they are (BERT). `prediction`: either one after dense, activation and norm, as those of
            `lm_head_transform` (ModernBERT: Warner et al. 2024).
        lm_head_transform: dense, activation and norm before the vocabulary projection, as in BERT.
        lm_head_bias: whether the vocabulary projection has a bias.
    """

    model_type = "decero_encoder"
    type_vocab_size: int = 0
    embedding_size: int | None = None  # type: ignore[assignment]
    pooling_layer: bool = False
    classifier_dropout: float | int | None = None
    classifier_pooling: Literal["cls", "mean", "late"] = "cls"
    pooler_act: str = "tanh"
    classifier_head: Literal["pooler", "prediction"] = "pooler"
    lm_head_transform: bool = True
    lm_head_transform_bias: bool = True
    lm_head_bias: bool = True

    def validate_pooler(self):
        """Raise ValueError for an unknown activation."""
        if self.pooler_act not in ACT2FN:
            raise ValueError(f"unknown pooler_act {self.pooler_act}; known: {', '.join(sorted(ACT2FN))}")

    def validate_directions(self):
        """Raise ValueError if a mixer cannot read in two directions."""
        if self.mixer_type == "conv" and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size {self.conv_kernel_size} must be odd: an encoder sees both sides")
        if self.mixer_type not in ("attention", "conv") and self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be even: each direction has half of the width")


@strict
class DeceroDecoderConfig(SingleStackConfig):
    r"""Configure a decoder such as GPT-2 or Llama (Radford et al. 2019).

    Args:
        lm_head_bias: whether the vocabulary projection has a bias.
    """

    model_type = "decero_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    lm_head_bias: bool = False
    classifier_dropout: float | int | None = None
    use_cache: bool = True

    def validate_window(self):
        """Raise ValueError for a window of one token: transformers' cache of sliding layers would keep all tokens."""
        if self.sliding_window == 1 and "sliding_attention" in (self.layer_types or []):
            raise ValueError("sliding_window 1 holds no token but the last one; set it to 2 or more")


@strict
class DeceroEncoderDecoderConfig(DeceroConfig):
    r"""Configure an encoder-decoder: Transformer of 2017, T5, Marian. Both share embeddings.

    Args:
        num_hidden_layers, decoder_layers: layers of encoder and decoder; None: the same number.
        intermediate_size, decoder_intermediate_size: feed-forward widths of encoder and decoder; None: the same width.
        tie_word_embeddings: the head uses the embeddings as weights (Vaswani et al. 2017, section 3.4; T5 1.0).
            Otherwise it has its own weights (T5 1.1).
        lm_head_bias: whether the vocabulary projection has a bias (Marian).
        train_lm_head_bias: whether that bias is trained; in Marian's stock class it is a buffer.
        scale_lm_head: divide by sqrt(hidden_size) before the tied projection (T5 1.0).
        decoder_start_token_id: first token that the decoder reads; None: `pad_token_id`.
    """

    model_type = "decero_encoder_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    decoder_layers: int | None = None
    decoder_intermediate_size: int | None = None  # type: ignore[assignment]
    lm_head_bias: bool = False
    train_lm_head_bias: bool = True
    scale_lm_head: bool = False
    classifier_dropout: float | int = 0.0
    decoder_start_token_id: int | None = None
    use_cache: bool = True
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        if self.decoder_intermediate_size is None:
            self.decoder_intermediate_size = self.intermediate_size
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.pad_token_id
        super().__post_init__(**kwargs)
