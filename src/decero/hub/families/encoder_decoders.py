"""Tables of encoder-decoders: T5 and Marian."""

from typing import Any

import torch

from decero.hub.families.common import BIASES, LAYER_NORM, NO_BIASES, POST_NORM, PRE_NORM, RMS_NORM, whole_heads
from decero.hub.families.folding import fold_config, fold_tensors
from decero.hub.table import Family, Head

# T5: Raffel et al. 2020; version 1.1 has a gated MLP and an untied head ---------------------------------------------


def t5_mlp_to_ours(stock: Any) -> dict[str, Any]:
    return {
        "num_key_value_heads": stock.num_heads,
        "hidden_act": stock.dense_act_fn,
        "gated_mlp": stock.is_gated_act,
        "bos_token_id": getattr(stock, "bos_token_id", None),
    }


def t5_mlp_to_stock(ours: Any) -> dict[str, Any]:
    activation = "gelu" if ours.gated_mlp and ours.hidden_act == "gelu_new" else ours.hidden_act
    start = {} if ours.bos_token_id is None else {"bos_token_id": ours.bos_token_id}  # T5's configuration has none
    return {"feed_forward_proj": f"gated-{activation}" if ours.gated_mlp else activation, **start}


def t5_to_ours(stock: Any) -> dict[str, Any]:
    scaled = stock.scale_decoder_outputs  # 1.0 scales and ties, 1.1 does neither; whether it ties, its tensors say
    return {
        **t5_mlp_to_ours(stock),
        "scale_lm_head": scaled,
        "tie_word_embeddings": scaled,
        "decoder_start_token_id": getattr(stock, "decoder_start_token_id", None),
    }


def t5_to_stock(ours: Any) -> dict[str, Any]:
    return {
        **t5_mlp_to_stock(ours),
        "scale_decoder_outputs": ours.scale_lm_head,
        "decoder_start_token_id": ours.decoder_start_token_id,
    }


def t5_stack(name: str, feed_forward: int) -> str:
    """Return the lines of one stack. feed_forward: the number of the feed-forward sublayer in a block."""
    return """
        STACK.relative_attention_bias           STACK.block.0.layer.0.SelfAttention.relative_attention_bias
        STACK.layers.{i}.pre_attn_norm          STACK.block.{i}.layer.0.layer_norm
        STACK.layers.{i}.self_attn.q_proj       STACK.block.{i}.layer.0.SelfAttention.q
        STACK.layers.{i}.self_attn.k_proj       STACK.block.{i}.layer.0.SelfAttention.k
        STACK.layers.{i}.self_attn.v_proj       STACK.block.{i}.layer.0.SelfAttention.v
        STACK.layers.{i}.self_attn.o_proj       STACK.block.{i}.layer.0.SelfAttention.o
        STACK.layers.{i}.pre_mlp_norm           STACK.block.{i}.layer.FF.layer_norm
        STACK.layers.{i}.mlp.up_proj            STACK.block.{i}.layer.FF.DenseReluDense.wi
        STACK.layers.{i}.mlp.gate_proj          STACK.block.{i}.layer.FF.DenseReluDense.wi_0
        STACK.layers.{i}.mlp.up_proj            STACK.block.{i}.layer.FF.DenseReluDense.wi_1
        STACK.layers.{i}.mlp.down_proj          STACK.block.{i}.layer.FF.DenseReluDense.wo
        STACK.norm                              STACK.final_layer_norm
    """.replace("STACK", name).replace("FF", str(feed_forward))


T5_FIELDS = """
    vocab_size
    hidden_size                         d_model
    head_dim                            d_kv
    intermediate_size                   d_ff
    num_hidden_layers                   num_layers
    num_attention_heads                 num_heads
    hidden_dropout_prob                 dropout_rate
    attention_probs_dropout_prob        dropout_rate
    activation_dropout                  dropout_rate
    relative_attention_num_buckets
    relative_attention_max_distance
    layer_norm_eps                      layer_norm_epsilon
    pad_token_id
    eos_token_id
"""
T5_FIXED = {
    **PRE_NORM, **RMS_NORM, **NO_BIASES, "position_embedding_type": "relative", "scale_attn_weights": False,
}  # fmt: skip
T5_UNREAD = """
    initializer_factor
    feed_forward_proj dense_act_fn is_gated_act
    scale_decoder_outputs tie_word_embeddings decoder_start_token_id bos_token_id
"""

T5 = Family(
    name="t5",
    ours="DeceroEncoderDecoder",
    fields=T5_FIELDS
    + """
        decoder_intermediate_size           d_ff
        decoder_layers                      num_decoder_layers
        classifier_dropout
    """,
    fixed={**T5_FIXED, "lm_head_bias": False},
    to_ours=t5_to_ours,
    to_stock=t5_to_stock,
    fold_config=fold_config,
    fold_tensors=fold_tensors,
    by_tensors=("tie_word_embeddings",),
    unread=T5_UNREAD,
    tensors="encoder.embed_tokens shared"
    + t5_stack("encoder", 1)
    + t5_stack("decoder", 2)
    + """
        decoder.layers.{i}.pre_cross_norm       decoder.block.{i}.layer.1.layer_norm
        decoder.layers.{i}.cross_attn.q_proj    decoder.block.{i}.layer.1.EncDecAttention.q
        decoder.layers.{i}.cross_attn.k_proj    decoder.block.{i}.layer.1.EncDecAttention.k
        decoder.layers.{i}.cross_attn.v_proj    decoder.block.{i}.layer.1.EncDecAttention.v
        decoder.layers.{i}.cross_attn.o_proj    decoder.block.{i}.layer.1.EncDecAttention.o
    """,
    heads={
        "Model": Head("T5Model"),
        "ForConditionalGeneration": Head("T5ForConditionalGeneration", "", "lm_head lm_head"),
        "ForSequenceClassification": Head(
            "T5ForSequenceClassification",
            "transformer.",
            "classification_head.{any} classification_head.{any}",
        ),
        "ForTokenClassification": Head("T5ForTokenClassification", "transformer.", "classifier classifier"),
        "ForQuestionAnswering": Head("T5ForQuestionAnswering", "", "qa_outputs qa_outputs"),
    },
)

T5_ENCODER = Family(  # load it with AutoModelForTextEncoding; AutoModel would load it as a T5Model
    name="t5",
    ours="DeceroEncoder",
    fields=T5_FIELDS,
    fixed={**T5_FIXED, "type_vocab_size": 0, "pooling_layer": False},
    to_ours=t5_mlp_to_ours,
    to_stock=t5_mlp_to_stock,
    fold_config=fold_config,
    fold_tensors=fold_tensors,
    unread=T5_UNREAD + "num_decoder_layers",
    training="classifier_dropout",
    tensors="embed_tokens shared" + t5_stack("encoder", 1).replace("\n        encoder.", "\n        "),
    heads={"Model": Head("T5EncoderModel")},
    loaders={"Model": "AutoModelForTextEncoding"},
)

# Marian: Junczys-Dowmunt et al. 2018; in layout the Transformer of 2017 ----------------------------------------------


def marian_stack(name: str) -> str:
    return """
        STACK.layers.{i}.self_attn.q_proj       STACK.layers.{i}.self_attn.q_proj
        STACK.layers.{i}.self_attn.k_proj       STACK.layers.{i}.self_attn.k_proj
        STACK.layers.{i}.self_attn.v_proj       STACK.layers.{i}.self_attn.v_proj
        STACK.layers.{i}.self_attn.o_proj       STACK.layers.{i}.self_attn.out_proj
        STACK.layers.{i}.post_attn_norm         STACK.layers.{i}.self_attn_layer_norm
        STACK.layers.{i}.mlp.up_proj            STACK.layers.{i}.fc1
        STACK.layers.{i}.mlp.down_proj          STACK.layers.{i}.fc2
        STACK.layers.{i}.post_mlp_norm          STACK.layers.{i}.final_layer_norm
    """.replace("STACK", name)


def marian_waves(stock: Any) -> dict[str, torch.Tensor]:
    """Compute the sinusoidal position tables, which the stock class stores as parameters."""
    modules = stock.named_modules()
    return {f"{name}.weight": module.create_weight() for name, module in modules if name.endswith("embed_positions")}


MARIAN = Family(
    name="marian",
    ours="DeceroEncoderDecoder",
    fields="""
        vocab_size
        vocab_size                          decoder_vocab_size
        hidden_size                         d_model
        num_hidden_layers                   encoder_layers
        decoder_layers
        num_attention_heads                 encoder_attention_heads
        num_attention_heads                 decoder_attention_heads
        intermediate_size                   encoder_ffn_dim
        decoder_intermediate_size           decoder_ffn_dim
        hidden_act                          activation_function
        hidden_dropout_prob                 dropout
        attention_probs_dropout_prob        attention_dropout
        activation_dropout
        scale_embeddings                    scale_embedding
        max_position_embeddings
        initializer_range                   init_std
        pad_token_id
        bos_token_id
        eos_token_id
        eos_token_id                        forced_eos_token_id
        decoder_start_token_id
    """,
    fixed={
        **POST_NORM,
        **LAYER_NORM,
        **BIASES,
        "position_embedding_type": "sinusoidal_halves",
        "layer_norm_eps": 1e-5,
        "lm_head_bias": True,
        "tie_word_embeddings": True,
    },
    to_ours=lambda stock: {**whole_heads(stock), "train_lm_head_bias": False},  # a buffer, final_logits_bias
    unread="init_std forced_eos_token_id",
    training="encoder_layerdrop decoder_layerdrop",
    tensors="encoder.embed_tokens shared"
    + marian_stack("encoder")
    + marian_stack("decoder")
    + """
        decoder.layers.{i}.cross_attn.q_proj    decoder.layers.{i}.encoder_attn.q_proj
        decoder.layers.{i}.cross_attn.k_proj    decoder.layers.{i}.encoder_attn.k_proj
        decoder.layers.{i}.cross_attn.v_proj    decoder.layers.{i}.encoder_attn.v_proj
        decoder.layers.{i}.cross_attn.o_proj    decoder.layers.{i}.encoder_attn.out_proj
        decoder.layers.{i}.post_cross_norm      decoder.layers.{i}.encoder_attn_layer_norm
    """,
    heads={
        "Model": Head("MarianModel"),
        "ForConditionalGeneration": Head("MarianMTModel", "model.", "lm_head.bias final_logits_bias row"),
    },
    formula=marian_waves,
)
