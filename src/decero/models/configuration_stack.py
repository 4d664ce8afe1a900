"""Define the fields that all stacks of layers share, whatever they read: tokens or images."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


@strict
class StackConfig(PreTrainedConfig):
    r"""Hold the fields of the layers (Vaswani et al. 2017). Names follow transformers.

    Args:
        num_key_value_heads: with fewer, heads share keys and values (Ainslie et al. 2023); None: one per head.
        head_dim: size of one head; None is hidden_size / num_attention_heads.
        gated_mlp: act(x W_gate) * (x W_up) instead of act(x W_up) (Shazeer 2020); `silu` with it is SwiGLU.
        attention_bias, mlp_bias, norm_bias: whether these layers have biases.
        scale_attn_weights: divide scores by sqrt(head_dim); T5 does not, but has smaller initial queries.
        norm_type: `layernorm` (Ba et al. 2016) or `rmsnorm` (Zhang & Sennrich 2019).
        norm_placement: `post` normalises after each residual sum (Vaswani et al. 2017; BERT). `pre` normalises the
            input of each sublayer (GPT-2) and trains without warm-up (Xiong et al. 2020).
        final_norm: norm after the last layer; None: yes for `pre`, where nothing else normalises the residual stream.
        embedding_norm: normalise the sum of embeddings (BERT); with `pre`, layer 0 has no first norm (ModernBERT).
        activation_dropout: dropout between the two layers of the MLP, as in T5 and Marian.
    """

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
    embedding_norm: bool = False
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    activation_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.final_norm is None:
            self.final_norm = self.norm_placement == "pre"
        super().__post_init__(**kwargs)

    def layer_type(self, layer_idx):
        """Return the kind of a layer: `full_attention` or `sliding_attention`."""
        return "full_attention"

    def validate_architecture(self):
        """Raise ValueError if sizes do not fit. huggingface_hub calls every `validate_*` method."""
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None:
            size = f"hidden_size {self.hidden_size}"
            raise ValueError(f"{size} is not a multiple of num_attention_heads {heads}; change one or set head_dim")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"unknown hidden_act {self.hidden_act}; known: {', '.join(sorted(ACT2FN))}")
        if heads % (groups or 1):
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
