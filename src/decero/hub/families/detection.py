"""Tables of models that find objects: DETR."""

import copy
from typing import Any

from decero.hub.families.common import BIASES, LAYER_NORM, POST_NORM, whole_heads
from decero.hub.table import Family, Head


def _to_ours(stock: Any) -> dict[str, Any]:
    """The backbone is kept as it is. Stock DETR hands on normalised states where it has auxiliary losses."""
    kept = {"backbone_config": copy.deepcopy(stock.backbone_config), "auxiliary_loss": stock.auxiliary_loss}
    return whole_heads(stock) | kept


# DETR: Carion et al. 2020, over any backbone of transformers ----------------------------------------------------------

DETR = Family(
    name="detr",
    ours="DeceroDetection",
    fields="""
        hidden_size                     d_model
        num_hidden_layers               encoder_layers
        decoder_layers
        num_attention_heads             encoder_attention_heads
        num_attention_heads             decoder_attention_heads
        intermediate_size               encoder_ffn_dim
        intermediate_size               decoder_ffn_dim
        hidden_act                      activation_function
        hidden_dropout_prob             dropout
        attention_probs_dropout_prob    attention_dropout
        activation_dropout
        initializer_range               init_std
        num_queries
        carry_norm                      auxiliary_loss
        class_cost
        bbox_cost
        giou_cost
        bbox_loss_coefficient
        giou_loss_coefficient
        eos_coefficient
    """,
    fixed={
        **POST_NORM,
        **LAYER_NORM,
        **BIASES,
        "layer_norm_eps": 1e-5,
        "stem": "backbone",
        "queries": "learned",
    },
    to_ours=_to_ours,
    to_stock=lambda ours: {"backbone_config": copy.deepcopy(ours.backbone_config)},
    unread="backbone_config num_channels init_xavier_std mask_loss_coefficient dice_loss_coefficient",
    training="encoder_layerdrop decoder_layerdrop",
    tensors="""
        stem.backbone.{any}                         backbone.model.{any}
        stem.projection                             input_projection
        encoder.layers.{i}.self_attn.q_proj         encoder.layers.{i}.self_attn.q_proj
        encoder.layers.{i}.self_attn.k_proj         encoder.layers.{i}.self_attn.k_proj
        encoder.layers.{i}.self_attn.v_proj         encoder.layers.{i}.self_attn.v_proj
        encoder.layers.{i}.self_attn.o_proj         encoder.layers.{i}.self_attn.o_proj
        encoder.layers.{i}.post_attn_norm           encoder.layers.{i}.self_attn_layer_norm
        encoder.layers.{i}.mlp.up_proj              encoder.layers.{i}.mlp.fc1
        encoder.layers.{i}.mlp.down_proj            encoder.layers.{i}.mlp.fc2
        encoder.layers.{i}.post_mlp_norm            encoder.layers.{i}.final_layer_norm
        decoder.query_positions                     query_position_embeddings
        decoder.layers.{i}.self_attn.q_proj         decoder.layers.{i}.self_attn.q_proj
        decoder.layers.{i}.self_attn.k_proj         decoder.layers.{i}.self_attn.k_proj
        decoder.layers.{i}.self_attn.v_proj         decoder.layers.{i}.self_attn.v_proj
        decoder.layers.{i}.self_attn.o_proj         decoder.layers.{i}.self_attn.o_proj
        decoder.layers.{i}.post_attn_norm           decoder.layers.{i}.self_attn_layer_norm
        decoder.layers.{i}.cross_attn.q_proj        decoder.layers.{i}.encoder_attn.q_proj
        decoder.layers.{i}.cross_attn.k_proj        decoder.layers.{i}.encoder_attn.k_proj
        decoder.layers.{i}.cross_attn.v_proj        decoder.layers.{i}.encoder_attn.v_proj
        decoder.layers.{i}.cross_attn.o_proj        decoder.layers.{i}.encoder_attn.o_proj
        decoder.layers.{i}.post_cross_norm          decoder.layers.{i}.encoder_attn_layer_norm
        decoder.layers.{i}.mlp.up_proj              decoder.layers.{i}.mlp.fc1
        decoder.layers.{i}.mlp.down_proj            decoder.layers.{i}.mlp.fc2
        decoder.layers.{i}.post_mlp_norm            decoder.layers.{i}.final_layer_norm
        decoder.norm                                decoder.layernorm
    """,
    heads={
        "ForObjectDetection": Head(
            "DetrForObjectDetection",
            "model.",
            """
            class_labels_classifier                     class_labels_classifier
            model.decoder.bbox_predictor.layers.{i}     bbox_predictor.layers.{i}
            """,
        ),
    },
)
