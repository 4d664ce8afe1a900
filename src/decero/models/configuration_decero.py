"""The configurations: every slot of the Transformer and what may be put in it, for each of its three shapes."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

LayerType = Literal["full_attention", "sliding_attention"]
Positions = Literal["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]


@strict
class DeceroConfig(PreTrainedConfig):
    r"""What every shape has (Vaswani et al. 2017), its variations chosen by slot. Names are Hugging Face's.

    Args:
        num_key_value_heads: fewer than heads share keys and values (Ainslie et al. 2023); None is one per head.
        head_dim: size of one head; None is hidden_size / num_attention_heads.
        gated_mlp: act(x W_gate) * (x W_up) instead of act(x W_up) (Shazeer 2020); `silu` with it is SwiGLU.
        attention_bias, mlp_bias, norm_bias: whether those layers carry biases.
        scale_attn_weights: divide scores by sqrt(head_dim); T5 does not and starts from smaller queries.
        norm_type: `layernorm` (Ba et al. 2016) or `rmsnorm` (Zhang & Sennrich 2019).
        norm_placement: `post` normalises after each residual sum (Vaswani et al. 2017; BERT), `pre` normalises what
            enters each sublayer (GPT-2; Xiong et al. 2020, which trains without warm-up).
        final_norm: a norm after the last layer; None is yes for `pre`, whose stream no other normalises.
        position_embedding_type: `sinusoidal` (Vaswani et al. 2017, section 3.5), `sinusoidal_halves` (sines first, as
            Marian has it), `learned` (BERT), `rotary` (Su et al. 2021), `relative` (a bias per bucket of distances:
            Raffel et al. 2020, section 2.1), or `none`, which makes an encoder blind to order.
        position_offset: rows of the learned table that come before the first position; RoBERTa keeps 2.
        embedding_norm: normalise the sum of the embeddings (BERT); a pre-norm first layer then has none (ModernBERT).
        scale_embeddings: multiply token embeddings by sqrt(hidden_size) (Vaswani et al. 2017, section 3.4).
        activation_dropout: between the two layers of the MLP, as in T5 and Marian.
        embedding_initializer_range: std of fresh token embeddings; None is `initializer_range`. T5 has 1.
    """

    type_vocab_size = 0  # a slot of the encoder alone; the others have no segments

    vocab_size: int = 30522
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    scale_attn_weights: bool = True
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_placement: Literal["pre", "post"] = "pre"
    norm_bias: bool = True
    layer_norm_eps: float = 1e-6
    final_norm: bool | None = None
    position_embedding_type: Positions = "rotary"
    max_position_embeddings: int = 512
    position_offset: int = 0
    rope_theta: float | int = 10000.0
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    embedding_norm: bool = False
    scale_embeddings: bool = False
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    activation_dropout: float | int = 0.0
    initializer_range: float = 0.02
    embedding_initializer_range: float | int | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.final_norm is None:
            self.final_norm = self.norm_placement == "pre"
        super().__post_init__(**kwargs)

    def layer_type(self, layer_idx):
        """What a layer sees: `full_attention`, or `sliding_attention` where the shape has that slot."""
        return "full_attention"

    def validate_architecture(self):
        """Refuse sizes that do not fit each other; huggingface_hub runs every `validate_*` when a config is made."""
        heads, groups, positions = self.num_attention_heads, self.num_key_value_heads, self.position_embedding_type
        if self.head_dim is None:
            size = f"hidden_size {self.hidden_size}"
            raise ValueError(f"{size} is not a multiple of num_attention_heads {heads}; change one or set head_dim")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act} is no activation; there are {', '.join(sorted(ACT2FN))}")
        if heads % (groups or 1):
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
        if positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of features, so head_dim {self.head_dim} must be even")
        buckets, far = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if positions == "relative" and not 4 <= buckets < 2 * far:
            raise ValueError(f"relative_attention_num_buckets {buckets} is not within 4 and 2 x max_distance {far}")
        if self.position_offset and positions != "learned":
            raise ValueError(f"position_offset moves a learned table, not {positions} positions")


@strict
class SlidingWindowConfig(DeceroConfig):
    r"""One stack, whose layers may each look through a window (Beltagy et al. 2020).

    Args:
        layer_types: `full_attention` or `sliding_attention` a layer; None is all of one kind, by `sliding_window`.
        sliding_window: how far a sliding layer of an encoder looks to either side (ModernBERT); how many tokens one of
            a decoder sees, the present one included (Mistral).
        local_rope_theta: the rotary base of the sliding layers; None is `rope_theta` (ModernBERT has two).
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
        """Refuse a window that is named and has no size."""
        if "sliding_attention" in (self.layer_types or []) and (self.sliding_window or 0) < 1:
            raise ValueError(f"layer_types names sliding_attention, but sliding_window is {self.sliding_window}")


@strict
class DeceroEncoderConfig(SlidingWindowConfig):
    r"""An encoder: BERT, RoBERTa, ModernBERT and what lies between (Vaswani et al. 2017, figure 1, left).

    Args:
        type_vocab_size: segments; with 0 `token_type_ids` are accepted and have no effect.
        pooling_layer: the bare model also gives `pooler_output`: dense and tanh over the pooled token, as BERT does.
        classifier_pooling: what the pooler reads: the first token (`cls`) or the mean over real tokens.
        lm_head_transform: dense, activation and norm before the vocabulary projection, as BERT does.
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
    r"""A decoder alone: GPT-2, Llama and what lies between (Radford et al. 2019).

    Args:
        lm_head_bias: whether the vocabulary projection carries a bias.
    """

    model_type = "decero_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    lm_head_bias: bool = False
    classifier_dropout: float | int | None = None
    use_cache: bool = True


@strict
class DeceroEncoderDecoderConfig(DeceroConfig):
    r"""Both stacks: the Transformer of 2017, T5, Marian. Both read one table of embeddings.

    Args:
        num_hidden_layers, decoder_layers: layers of the encoder, and of the decoder (None: as many).
        tie_word_embeddings: the head projects with the embeddings (Vaswani et al. 2017, section 3.4; T5 1.0), or
            with weights of its own (T5 1.1). The two stacks share their embeddings either way.
        lm_head_bias: whether the vocabulary projection carries a bias (Marian).
        scale_lm_head: divide by sqrt(hidden_size) before the tied projection (T5 1.0).
        decoder_start_token_id: what the decoder reads first; None is `pad_token_id`.
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
