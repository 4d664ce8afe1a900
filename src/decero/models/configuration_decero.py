"""The configuration: every slot of the Transformer and what may be put in it."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


@strict
class DeceroEncoderConfig(PreTrainedConfig):
    r"""An encoder (Vaswani et al. 2017, section 3.1), its variations chosen by slot. Names are Hugging Face's.

    Args:
        norm_type: `layernorm` (Ba et al. 2016) or `rmsnorm` (Zhang & Sennrich 2019).
        norm_placement: `post` normalises after each residual sum (Vaswani et al. 2017; BERT), `pre` normalises what
            enters each sublayer and adds a final norm (GPT-2; Xiong et al. 2020, which trains without warm-up).
        position_embedding_type: `sinusoidal` (Vaswani et al. 2017, section 3.5), `learned` (BERT), `rotary`
            (Su et al. 2021) or `none`, which makes the encoder blind to order.
        gated_mlp: act(x W_gate) * (x W_up) instead of act(x W_up) (Shazeer 2020); `silu` with it is SwiGLU.
        attention_bias, mlp_bias, norm_bias: whether those layers carry biases.
        embedding_norm: normalise the sum of the embeddings, as BERT does.
        scale_embeddings: multiply token embeddings by sqrt(hidden_size) (Vaswani et al. 2017, section 3.4).
        num_key_value_heads: fewer than `num_attention_heads` shares keys and values between groups of heads
            (Ainslie et al. 2023); None is one per head.
        head_dim: size of one head; None is hidden_size / num_attention_heads.
        type_vocab_size: segment embeddings; with 0 `token_type_ids` are accepted and have no effect, as in RoBERTa.
        classifier_pooling: what the sequence classifier reads: the first token (`cls`) or the mean over real tokens.
        lm_head_transform: dense, activation and norm before the vocabulary projection, as BERT does.
    """

    model_type = "decero_encoder"

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
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_placement: Literal["pre", "post"] = "pre"
    norm_bias: bool = True
    layer_norm_eps: float = 1e-6
    position_embedding_type: Literal["sinusoidal", "learned", "rotary", "none"] = "rotary"
    max_position_embeddings: int = 512
    rope_theta: float | int = 10000.0
    embedding_norm: bool = False
    scale_embeddings: bool = False
    type_vocab_size: int = 0
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout: float | int | None = None
    classifier_pooling: Literal["cls", "mean"] = "cls"
    lm_head_transform: bool = True
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Refuse sizes that do not fit each other; huggingface_hub runs every `validate_*` when a config is made."""
        if self.head_dim is None:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}; "
                "change one of them or set head_dim"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act} is no activation; there are {', '.join(sorted(ACT2FN))}")
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.position_embedding_type == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of features, so head_dim {self.head_dim} must be even")


__all__ = ["DeceroEncoderConfig"]
