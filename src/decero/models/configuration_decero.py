"""Define the configurations of encoder, decoder and encoder-decoder."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_stack import StackConfig

LayerType = Literal["full_attention", "sliding_attention"]
Positions = Literal["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]


@strict
class DeceroConfig(StackConfig):
    r"""Add the fields of all models that read and write tokens (Vaswani et al. 2017).

    Args:
        position_embedding_type: `sinusoidal` (Vaswani et al. 2017, section 3.5), `sinusoidal_halves` (sines first, as
            in Marian), `learned` (BERT), `rotary` (Su et al. 2021), `relative` (a bias per bucket of distances:
            Raffel et al. 2020, section 2.1), or `none` (an encoder then ignores order).
        position_offset: rows of the learned table before the first position; RoBERTa has 2.
        scale_embeddings: multiply token embeddings by sqrt(hidden_size) (Vaswani et al. 2017, section 3.4).
        embedding_initializer_range: std of initial token embeddings; None: `initializer_range`. T5 has 1.
    """

    type_vocab_size = 0  # only the encoder has segments

    vocab_size: int = 30522
    position_embedding_type: Positions = "rotary"
    max_position_embeddings: int = 512
    position_offset: int = 0
    rope_theta: float | int = 10000.0
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    scale_embeddings: bool = False
    embedding_initializer_range: float | int | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_positions(self):
        """Raise ValueError if positions do not fit the sizes."""
        positions = self.position_embedding_type
        if positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary positions rotate pairs of features")
        buckets, far = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if positions == "relative" and not 4 <= buckets < 2 * far:
            raise ValueError(f"relative_attention_num_buckets {buckets} must be in [4, 2 x max_distance {far})")
        if self.position_offset and positions != "learned":
            raise ValueError(f"position_offset works only with learned positions, not with {positions}")


@strict
class SlidingWindowConfig(DeceroConfig):
    r"""Add layers with sliding-window attention to a single stack (Beltagy et al. 2020).

    Args:
        layer_types: `full_attention` or `sliding_attention` per layer; None: all the same, by `sliding_window`.
        sliding_window: in an encoder, tokens that a sliding layer sees on each side (ModernBERT). In a decoder, all
            tokens that it sees, including the current one (Mistral).
        local_rope_theta: rotary base of the sliding layers; None: `rope_theta` (ModernBERT has two bases).
    """

    layer_types: list[LayerType] | None = None
    sliding_window: int | None = None
    local_rope_theta: float | int | None = None

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            kind: LayerType = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    def layer_type(self, layer_idx):
        return self.layer_types[layer_idx]  # type: ignore[index]

    def validate_sliding_window(self):
        """Raise ValueError for sliding layers without a window size."""
        if "sliding_attention" in (self.layer_types or []) and (self.sliding_window or 0) < 1:
            raise ValueError(f"layer_types has sliding_attention, but sliding_window is {self.sliding_window}; set it")


@strict
class DeceroEncoderConfig(SlidingWindowConfig):
    r"""Configure an encoder such as BERT or ModernBERT (Vaswani et al. 2017, figure 1, left).

    Args:
        type_vocab_size: number of segments; with 0, `token_type_ids` are accepted but have no effect.
        pooling_layer: the bare model also returns `pooler_output`: dense and tanh over the pooled token, as in BERT.
        classifier_pooling: input of the pooler: first token (`cls`) or mean over tokens without padding.
        lm_head_transform: dense, activation and norm before the vocabulary projection, as in BERT.
    """

    model_type = "decero_encoder"

    type_vocab_size: int = 0
    pooling_layer: bool = False
    classifier_dropout: float | int | None = None
    classifier_pooling: Literal["cls", "mean"] = "cls"
    lm_head_transform: bool = True
    lm_head_transform_bias: bool = True


@strict
class DeceroDecoderConfig(SlidingWindowConfig):
    r"""Configure a decoder such as GPT-2 or Llama (Radford et al. 2019).

    Args:
        lm_head_bias: whether the vocabulary projection has a bias.
    """

    model_type = "decero_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    lm_head_bias: bool = False
    classifier_dropout: float | int | None = None
    use_cache: bool = True


@strict
class DeceroEncoderDecoderConfig(DeceroConfig):
    r"""Configure an encoder-decoder: Transformer of 2017, T5, Marian. Both share embeddings.

    Args:
        num_hidden_layers, decoder_layers: layers of encoder and decoder; None: the same number.
        tie_word_embeddings: the head uses the embeddings as weights (Vaswani et al. 2017, section 3.4; T5 1.0).
            Otherwise it has its own weights (T5 1.1).
        lm_head_bias: whether the vocabulary projection has a bias (Marian).
        scale_lm_head: divide by sqrt(hidden_size) before the tied projection (T5 1.0).
        decoder_start_token_id: first token that the decoder reads; None: `pad_token_id`.
    """

    model_type = "decero_encoder_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    decoder_layers: int | None = None
    lm_head_bias: bool = False
    scale_lm_head: bool = False
    decoder_start_token_id: int | None = None
    use_cache: bool = True
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.pad_token_id
        super().__post_init__(**kwargs)
