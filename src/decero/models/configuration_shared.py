"""Define the fields that the configurations of several models share."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .compatibility import EmptyAutoMap
from .parallel_plans import pipeline_plan, tensor_plan
from .rope_scaling import check_rope, one_rope

LayerType = Literal["full_attention", "sliding_attention"]
MixerType = Literal["attention", "lstm", "gru", "rnn", "min_gru", "conv"]
Positions = Literal["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]


@strict
class StackConfig(PreTrainedConfig):
    r"""Hold the fields of the layers (Vaswani et al. 2017). Names follow transformers.

    Args:
        num_key_value_heads: with fewer, heads share keys and values (Ainslie et al. 2023); None: one per head.
        head_dim: size of one head; None is hidden_size / num_attention_heads.
        gated_mlp: act(x W_gate) * (x W_up) instead of act(x W_up) (Shazeer 2020); `silu` with it is SwiGLU.
        attention_bias, mlp_bias, norm_bias: whether these layers have biases. attention_bias is also that of the
            projections of another mixer.
        scale_attn_weights: divide scores by sqrt(head_dim); T5 does not, but has smaller initial queries.
        norm_type: `layernorm` (Ba et al. 2016) or `rmsnorm` (Zhang & Sennrich 2019).
        norm_placement: `post` normalises after each residual sum (Vaswani et al. 2017; BERT). `pre` normalises the
            input of each sublayer (GPT-2) and trains without warm-up (Xiong et al. 2020).
        final_norm: norm after the last layer; None: yes for `pre`, where nothing else normalises the residual stream.
        embedding_norm: normalise the sum of embeddings (BERT); with `pre`, layer 0 has no first norm (ModernBERT).
        activation_dropout: dropout between the two layers of the MLP, as in T5 and Marian.
    """

    mixer_type = "attention"  # only single stacks of tokens have others
    embedding_size = None  # only the encoder of tokens has embeddings of another width
    decoder_intermediate_size = None  # only the encoder-decoder has a decoder beside its encoder
    pooler_act = "tanh"  # only the encoder of tokens has another one
    classifier_head = "pooler"  # only the encoder of tokens has the other one
    auto_map = EmptyAutoMap()

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
        if self.head_dim is None and self.mixer_type == "attention":
            size = f"hidden_size {self.hidden_size}"
            raise ValueError(f"{size} is not a multiple of num_attention_heads {heads}; change one or set head_dim")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"unknown hidden_act {self.hidden_act}; known: {', '.join(sorted(ACT2FN))}")
        if self.mixer_type == "attention" and heads % (groups or 1):
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")


@strict
class DeceroConfig(StackConfig):
    r"""Add the fields of all models that read and write tokens (Vaswani et al. 2017).

    Args:
        position_embedding_type: `sinusoidal` (Vaswani et al. 2017, section 3.5), `sinusoidal_halves` (sines first, as
            in Marian), `learned` (BERT), `rotary` (Su et al. 2021), `relative` (a bias per bucket of distances:
            Raffel et al. 2020, section 2.1), or `none` (an encoder then ignores order).
        rope_parameters: how rotary positions reach longer texts, with transformers' names: {rope_type: yarn, factor: 4,
            original_max_position_embeddings: 2048}, or linear, dynamic, llama3; None: as they are.
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
    rope_parameters: dict | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    scale_embeddings: bool = False
    embedding_initializer_range: float | int | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        given = one_rope(self.rope_parameters or kwargs.pop("rope_scaling", None), self.rope_theta, 10000.0)
        self.rope_parameters, self.rope_theta = given
        super().__post_init__(**kwargs)  # transformers adds its defaults to rope_parameters
        self.rope_parameters, _ = one_rope(self.rope_parameters, self.rope_theta, 10000.0)

    def validate_rope(self):
        """Raise ValueError for `rope_parameters` that cannot be computed."""
        check_rope(self)

    def validate_positions(self):
        """Raise ValueError if positions do not fit the sizes."""
        positions = self.position_embedding_type
        if positions == "rotary" and (self.head_dim or 0) % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary positions rotate pairs of features")
        buckets, far = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if positions == "relative" and not 4 <= buckets < 2 * far:
            raise ValueError(f"relative_attention_num_buckets {buckets} must be in [4, 2 x max_distance {far})")
        if self.position_offset and positions != "learned":
            raise ValueError(f"position_offset works only with learned positions, not with {positions}")


@strict
class SingleStackConfig(DeceroConfig):
    r"""Choose the mixer of a single stack, and layers with sliding-window attention (Beltagy et al. 2020).

    Args:
        mixer_type: what carries information from token to token: `attention`; `lstm` (Hochreiter & Schmidhuber 1997),
            `gru` (Cho et al. 2014), `rnn` (Elman 1990), `min_gru` (Feng et al. 2024) or `conv`, a gated depthwise
            convolution (Poli et al. 2023). An encoder reads in both directions, half of the width each.
        conv_kernel_size: tokens that one convolution sees: in a decoder the current one and those before it; in an
            encoder as many on each side, so the number must be odd.
        layer_types: `full_attention` or `sliding_attention` per layer; None: all the same, by `sliding_window`.
        sliding_window: in an encoder, tokens that a sliding layer sees on each side (ModernBERT). In a decoder, all
            tokens that it sees, including the current one (Mistral).
        local_rope_theta: rotary base of the sliding layers; None: `rope_theta` (ModernBERT has two bases).
    """

    # transformers 5.20 sets it for tied embeddings, which the plan knows already
    base_model_tp_plan = property(tensor_plan, lambda self, plan: None)  # type: ignore[assignment]
    base_model_pp_plan = property(pipeline_plan)  # type: ignore[assignment]

    mixer_type: MixerType = "attention"
    conv_kernel_size: int = 9
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

    def validate_mixer(self):
        """Raise ValueError for settings that a mixer without attention cannot follow."""
        if self.mixer_type == "attention":
            return
        if self.position_embedding_type in ("rotary", "relative"):
            raise ValueError(
                f"mixer_type {self.mixer_type} has no scores for {self.position_embedding_type} positions; "
                "set position_embedding_type to none, learned or sinusoidal"
            )
        if "sliding_attention" in (self.layer_types or []):
            raise ValueError(f"layer_types has sliding_attention, but mixer_type is {self.mixer_type}; remove one")
        if self.conv_kernel_size < 1:
            raise ValueError(f"conv_kernel_size {self.conv_kernel_size} must be at least 1")
