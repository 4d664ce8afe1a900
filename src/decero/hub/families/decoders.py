"""Tables of decoders: GPT-2, Llama and StableLM."""

from typing import Any

from decero.hub.families.common import (
    BIASES,
    LAYER_NORM,
    NO_BIASES,
    PRE_NORM,
    RMS_NORM,
    rope_to_ours,
    rope_to_stock,
    whole_heads,
)
from decero.hub.table import Family, Head


def dropout_to_ours(stock: Any) -> dict[str, Any]:
    """The heads of tokens read this option, which no configuration of these families declares."""
    return {"classifier_dropout": getattr(stock, "classifier_dropout", None)}


def dropout_to_stock(ours: Any) -> dict[str, Any]:
    return {} if ours.classifier_dropout is None else {"classifier_dropout": ours.classifier_dropout}


# GPT-2: Radford et al. 2019 ------------------------------------------------------------------------------------------

GPT2 = Family(
    name="gpt2",
    ours="DeceroDecoder",
    fields="""
        vocab_size
        hidden_size                     n_embd
        num_hidden_layers               n_layer
        num_attention_heads             n_head
        hidden_act                      activation_function
        hidden_dropout_prob             resid_pdrop
        hidden_dropout_prob             embd_pdrop
        attention_probs_dropout_prob    attn_pdrop
        max_position_embeddings         n_positions
        layer_norm_eps                  layer_norm_epsilon
        scale_attn_weights
        initializer_range
        tie_word_embeddings
        pad_token_id
        bos_token_id
        eos_token_id
    """,
    fixed={**PRE_NORM, **LAYER_NORM, **BIASES, "position_embedding_type": "learned"},
    to_ours=lambda stock: {
        **whole_heads(stock),
        **dropout_to_ours(stock),
        "intermediate_size": stock.n_inner or 4 * stock.n_embd,
    },
    to_stock=lambda ours: {
        "n_inner": None if ours.intermediate_size == 4 * ours.hidden_size else ours.intermediate_size,
        **dropout_to_stock(ours),
    },
    for_4=lambda ours: {"n_ctx": ours.max_position_embeddings},  # llama.cpp's converter asks for it
    unread="n_inner summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout",
    tensors="""
        embed_tokens                        wte
        embed_positions.embed_positions     wpe
        layers.{i}.pre_attn_norm            h.{i}.ln_1
        layers.{i}.self_attn.{q,k,v}_proj   h.{i}.attn.c_attn       transposed
        layers.{i}.self_attn.o_proj         h.{i}.attn.c_proj       transposed
        layers.{i}.pre_mlp_norm             h.{i}.ln_2
        layers.{i}.mlp.up_proj              h.{i}.mlp.c_fc          transposed
        layers.{i}.mlp.down_proj            h.{i}.mlp.c_proj        transposed
        norm                                ln_f
    """,
    heads={
        "Model": Head("GPT2Model"),
        "ForCausalLM": Head("GPT2LMHeadModel", "transformer.", "lm_head lm_head"),
        "ForSequenceClassification": Head("GPT2ForSequenceClassification", "transformer.", "score score"),
        "ForTokenClassification": Head("GPT2ForTokenClassification", "transformer.", "score classifier"),
        "ForQuestionAnswering": Head("GPT2ForQuestionAnswering", "transformer.", "qa_outputs qa_outputs"),
    },
)

# Llama: Touvron et al. 2023 ------------------------------------------------------------------------------------------

LLAMA_FIELDS = """
    vocab_size
    hidden_size
    num_hidden_layers
    num_attention_heads
    num_key_value_heads
    head_dim
    intermediate_size
    hidden_act
    attention_bias
    mlp_bias
    attention_probs_dropout_prob    attention_dropout
    max_position_embeddings
    layer_norm_eps                  rms_norm_eps
    initializer_range
    tie_word_embeddings
    pad_token_id
    bos_token_id
    eos_token_id
"""
LLAMA_TENSORS = """
    embed_tokens                    embed_tokens
    layers.{i}.pre_attn_norm        layers.{i}.input_layernorm
    layers.{i}.self_attn.q_proj     layers.{i}.self_attn.q_proj
    layers.{i}.self_attn.k_proj     layers.{i}.self_attn.k_proj
    layers.{i}.self_attn.v_proj     layers.{i}.self_attn.v_proj
    layers.{i}.self_attn.o_proj     layers.{i}.self_attn.o_proj
    layers.{i}.pre_mlp_norm         layers.{i}.post_attention_layernorm
    layers.{i}.mlp.gate_proj        layers.{i}.mlp.gate_proj
    layers.{i}.mlp.up_proj          layers.{i}.mlp.up_proj
    layers.{i}.mlp.down_proj        layers.{i}.mlp.down_proj
    norm                            norm
"""


def llama_for_4(ours: Any) -> dict[str, Any]:
    return {"rope_theta": ours.rope_theta} | ({"rope_scaling": ours.rope_parameters} if ours.rope_parameters else {})


LLAMA = Family(
    name="llama",
    ours="DeceroDecoder",
    fields=LLAMA_FIELDS,
    fixed={**PRE_NORM, **RMS_NORM, "gated_mlp": True, "position_embedding_type": "rotary"},
    to_ours=lambda stock: {**rope_to_ours(stock.rope_parameters), **dropout_to_ours(stock)},
    to_stock=lambda ours: {"rope_parameters": rope_to_stock(ours), **dropout_to_stock(ours)},
    for_4=llama_for_4,
    unread="pretraining_tp",  # the tensor parallelism of pretraining; does not change the outputs
    tensors=LLAMA_TENSORS,
    heads={
        "Model": Head("LlamaModel"),
        "ForCausalLM": Head("LlamaForCausalLM", "model.", "lm_head lm_head"),
        "ForSequenceClassification": Head("LlamaForSequenceClassification", "model.", "score score"),
        "ForTokenClassification": Head("LlamaForTokenClassification", "model.", "score score"),
        "ForQuestionAnswering": Head("LlamaForQuestionAnswering", "transformer.", "qa_outputs qa_outputs"),
    },
)

# StableLM: Bellagente et al. 2024. As Llama, with LayerNorms; published ones turn a part of each head only ------------

STABLELM = Family(
    name="stablelm",
    ours="DeceroDecoder",
    fields="""
        vocab_size
        hidden_size
        num_hidden_layers
        num_attention_heads
        num_key_value_heads
        intermediate_size
        hidden_act
        attention_probs_dropout_prob    attention_dropout
        max_position_embeddings
        layer_norm_eps
        initializer_range
        tie_word_embeddings
        pad_token_id
        bos_token_id
        eos_token_id
    """,
    fixed={
        **PRE_NORM, **NO_BIASES, "norm_type": "layernorm", "gated_mlp": True, "position_embedding_type": "rotary",
    },
    to_ours=lambda stock: {
        "head_dim": stock.hidden_size // stock.num_attention_heads,
        **rope_to_ours({k: v for k, v in stock.rope_parameters.items() if k != "partial_rotary_factor"}),
    },
    to_stock=lambda ours: {"rope_parameters": {**rope_to_stock(ours), "partial_rotary_factor": 1.0}},
    for_4=lambda ours: {**llama_for_4(ours), "partial_rotary_factor": 1.0},
    by_tensors=("norm_bias",),
    zeros={"norm_bias": r".*norm\.bias"},
    training="hidden_dropout",
    tensors=LLAMA_TENSORS,
    heads={
        "Model": Head("StableLmModel"),
        "ForCausalLM": Head("StableLmForCausalLM", "model.", "lm_head lm_head"),
        "ForSequenceClassification": Head("StableLmForSequenceClassification", "model.", "score score"),
    },
)  # fmt: skip
