"""Table of ModernBERT: Warner et al. 2024."""

from typing import Any

from decero.hub.families.common import PRE_NORM, rope_to_ours, rope_to_stock, whole_heads
from decero.hub.table import Family, Head


def modernbert_to_ours(stock: Any) -> dict[str, Any]:
    full, local = (stock.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    scaled_alike = local == full and local["rope_type"] != "default"
    return {
        **whole_heads(stock),
        **rope_to_ours(full),
        "local_rope_theta": None if scaled_alike else local["rope_theta"],
        "sliding_window": stock.local_attention // 2,
        "classifier_pooling": stock.classifier_pooling,
    }


def modernbert_to_stock(ours: Any) -> dict[str, Any]:
    full = rope_to_stock(ours)
    local = {"rope_type": "default", "rope_theta": ours.local_rope_theta} if ours.local_rope_theta else full
    return {
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "local_attention": 2 * (ours.sliding_window or 64),
        "classifier_pooling": "mean" if ours.classifier_pooling == "late" else ours.classifier_pooling,
    }


def modernbert_for_4(ours: Any) -> dict[str, Any]:
    """Every nth layer has full attention: the only pattern that transformers 4 supports."""
    full = [i for i, kind in enumerate(ours.layer_types) if kind == "full_attention"]
    every = full[1] if len(full) > 1 else ours.num_hidden_layers
    thetas = {"global_rope_theta": ours.rope_theta, "local_rope_theta": ours.local_rope_theta or ours.rope_theta}
    return thetas | (
        {"global_attn_every_n_layers": every} if full == [*range(0, ours.num_hidden_layers, every)] else {}
    )


MODERNBERT_POOLER = """
    model.pooler.dense.0        head.dense
    model.pooler.dense.2        head.norm
    classifier                  classifier
"""
MODERNBERT_WORDS = """
    transform.0                 head.dense
    transform.2                 head.norm
"""

MODERNBERT = Family(
    name="modernbert",
    ours="DeceroEncoder",
    fields="""
        vocab_size
        hidden_size
        num_hidden_layers
        num_attention_heads
        intermediate_size
        hidden_act                      hidden_activation
        hidden_act                      classifier_activation
        hidden_dropout_prob             embedding_dropout
        attention_probs_dropout_prob    attention_dropout
        activation_dropout              mlp_dropout
        attention_bias
        mlp_bias
        norm_bias
        layer_norm_eps                  norm_eps
        lm_head_transform_bias          classifier_bias
        layer_types
        max_position_embeddings
        initializer_range
        tie_word_embeddings
        pad_token_id
        bos_token_id
        bos_token_id                    cls_token_id
        eos_token_id
        eos_token_id                    sep_token_id
    """,
    fixed={
        **PRE_NORM,
        "norm_type": "layernorm",
        "gated_mlp": True,
        "embedding_norm": True,
        "position_embedding_type": "rotary",
        "type_vocab_size": 0,
        "classifier_head": "prediction",
    },
    to_ours=modernbert_to_ours,
    to_stock=modernbert_to_stock,
    for_4=modernbert_for_4,
    unread="""
        initializer_cutoff_factor cls_token_id sep_token_id deterministic_flash_attn
        sparse_prediction sparse_pred_ignore_index global_attn_every_n_layers
    """,
    training="classifier_dropout",
    tensors="""
        embed_tokens                        embeddings.tok_embeddings
        embed_norm                          embeddings.norm
        layers.{i}.pre_attn_norm            layers.{i}.attn_norm
        layers.{i}.self_attn.{q,k,v}_proj   layers.{i}.attn.Wqkv
        layers.{i}.self_attn.o_proj         layers.{i}.attn.Wo
        layers.{i}.pre_mlp_norm             layers.{i}.mlp_norm
        layers.{i}.mlp.{gate,up}_proj       layers.{i}.mlp.Wi
        layers.{i}.mlp.down_proj            layers.{i}.mlp.Wo
        norm                                final_norm
    """,
    heads={
        "Model": Head("ModernBertModel"),
        "ForMaskedLM": Head(
            "ModernBertForMaskedLM",
            "model.",
            """
            lm_head.transform.0         head.dense
            lm_head.transform.2         head.norm
            lm_head.decoder             decoder
            """,
        ),
        "ForSequenceClassification": Head("ModernBertForSequenceClassification", "model.", MODERNBERT_POOLER),
        "ForMultipleChoice": Head("ModernBertForMultipleChoice", "model.", MODERNBERT_POOLER),
        "ForTokenClassification": Head(
            "ModernBertForTokenClassification", "model.", MODERNBERT_WORDS + "classifier classifier"
        ),
        "ForQuestionAnswering": Head(
            "ModernBertForQuestionAnswering", "model.", MODERNBERT_WORDS + "qa_outputs classifier"
        ),
    },
)
