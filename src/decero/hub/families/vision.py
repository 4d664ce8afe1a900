"""Tables of models that read images: ViT and DeiT."""

from dataclasses import replace

from decero.hub.families.common import BIASES, LAYER_NORM, PRE_NORM, whole_heads
from decero.hub.table import Family, Head

# ViT: Dosovitskiy et al. 2021 ----------------------------------------------------------------------------------------

VIT_FIXED = {
    **PRE_NORM,
    **LAYER_NORM,
    **BIASES,
    "stem": "patch",
    "pooling": "cls",
    "distillation_token": False,
    "distillation_head": False,
    "position_embedding_type": "learned",
}
PIXELS = "decoder                         decoder.0                                   pointwise"

VIT = Family(
    name="vit",
    ours="DeceroVision",
    fields="""
        hidden_size
        num_hidden_layers
        num_attention_heads
        intermediate_size
        hidden_act
        hidden_dropout_prob
        attention_probs_dropout_prob
        layer_norm_eps
        initializer_range
        image_size
        patch_size
        num_channels
    """,
    fixed=VIT_FIXED,
    to_ours=whole_heads,
    to_stock=lambda ours: {"encoder_stride": ours.patch_size},
    by_tensors=("pooling_layer",),
    unread="encoder_stride",  # masked image modelling needs patch_size here; other classes do not read it
    tensors="""
        stem                            embeddings.patch_embeddings.projection
        special_tokens.0.weight         embeddings.cls_token                        row
        mask_token.weight               embeddings.mask_token                       row
        embed_positions.weight          embeddings.position_embeddings              row
        layers.{i}.pre_attn_norm        layers.{i}.layernorm_before
        layers.{i}.self_attn.q_proj     layers.{i}.attention.q_proj
        layers.{i}.self_attn.k_proj     layers.{i}.attention.k_proj
        layers.{i}.self_attn.v_proj     layers.{i}.attention.v_proj
        layers.{i}.self_attn.o_proj     layers.{i}.attention.o_proj
        layers.{i}.pre_mlp_norm         layers.{i}.layernorm_after
        layers.{i}.mlp.up_proj          layers.{i}.mlp.fc1
        layers.{i}.mlp.down_proj        layers.{i}.mlp.fc2
        norm                            layernorm
        pooler.dense                    pooler.dense
    """,
    heads={
        "Model": Head("ViTModel"),
        "ForImageClassification": Head("ViTForImageClassification", "vit.", "classifier classifier"),
        "ForMaskedImageModeling": Head("ViTForMaskedImageModeling", "vit.", PIXELS),
    },
    left_behind=r"(vit\.)?pooler\..*",
)

# DeiT: Touvron et al. 2021. As ViT, with a second token; its files may have a head for each of the two ----------------

DEIT = replace(
    VIT,
    name="deit",
    fixed={**VIT_FIXED, "distillation_token": True},
    tensors=VIT.tensors + "special_tokens.1.weight embeddings.distillation_token row",
    heads={
        "Model": Head("DeiTModel"),
        "ForImageClassification": Head("DeiTForImageClassification", "deit.", "classifier classifier"),
        "ForMaskedImageModeling": Head("DeiTForMaskedImageModeling", "deit.", PIXELS),
    },
    left_behind=r"(deit\.)?pooler\..*",
)
DEIT_DISTILLED = replace(
    DEIT,
    fixed={**DEIT.fixed, "distillation_head": True},
    heads={
        "ForImageClassification": Head(
            "DeiTForImageClassificationWithTeacher",
            "deit.",
            """
            classifier                  cls_classifier
            distillation_classifier     distillation_classifier
            """,
        )
    },
)
