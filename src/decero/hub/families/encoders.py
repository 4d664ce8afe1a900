"""Tables of encoders: BERT, RoBERTa, DistilBERT and ModernBERT."""

from typing import Any

from decero.hub.families.common import BIASES, LAYER_NORM, POST_NORM, PRE_NORM, rope_to_ours, rope_to_stock, whole_heads
from decero.hub.table import Family, Head

# BERT: Devlin et al. 2019 -------------------------------------------------------------------------------------------

BERT_FIELDS = """
    vocab_size
    hidden_size
    num_hidden_layers
    num_attention_heads
    intermediate_size
    hidden_act
    hidden_dropout_prob
    attention_probs_dropout_prob
    classifier_dropout
    type_vocab_size
    layer_norm_eps
    initializer_range
    tie_word_embeddings
    pad_token_id
    bos_token_id
    eos_token_id
"""
BERT_FIXED = {
    **POST_NORM,
    **LAYER_NORM,
    **BIASES,
    "position_embedding_type": "learned",
    "embedding_norm": True,
    "activation_dropout": 0.0,
}
BERT_TENSORS = """
    embed_tokens                        embeddings.word_embeddings
    embed_positions.embed_positions     embeddings.position_embeddings
    embed_token_types                   embeddings.token_type_embeddings
    embed_norm                          embeddings.LayerNorm
    layers.{i}.self_attn.q_proj         encoder.layer.{i}.attention.self.query
    layers.{i}.self_attn.k_proj         encoder.layer.{i}.attention.self.key
    layers.{i}.self_attn.v_proj         encoder.layer.{i}.attention.self.value
    layers.{i}.self_attn.o_proj         encoder.layer.{i}.attention.output.dense
    layers.{i}.post_attn_norm           encoder.layer.{i}.attention.output.LayerNorm
    layers.{i}.mlp.up_proj              encoder.layer.{i}.intermediate.dense
    layers.{i}.mlp.down_proj            encoder.layer.{i}.output.dense
    layers.{i}.post_mlp_norm            encoder.layer.{i}.output.LayerNorm
    pooler.dense                        pooler.dense
"""


def with_segments(stock: Any) -> dict[str, Any]:
    """The stock class always adds a token type embedding; a model without token types has no counterpart."""
    return {**whole_heads(stock), "type_vocab_size": max(stock.type_vocab_size, 1)}


BERT = Family(
    name="bert",
    ours="DeceroEncoder",
    fields=BERT_FIELDS + "max_position_embeddings",
    fixed=BERT_FIXED,
    to_ours=with_segments,
    by_tensors=("pooling_layer",),
    tensors=BERT_TENSORS,
    heads={
        "Model": Head("BertModel"),
        "ForMaskedLM": Head(
            "BertForMaskedLM",
            "bert.",
            """
            lm_head.transform.0         cls.predictions.transform.dense
            lm_head.transform.2         cls.predictions.transform.LayerNorm
            lm_head.decoder             cls.predictions.decoder
            lm_head.decoder.bias        cls.predictions.bias
            """,
        ),
        "ForSequenceClassification": Head("BertForSequenceClassification", "bert.", "classifier classifier"),
        "ForTokenClassification": Head("BertForTokenClassification", "bert.", "classifier classifier"),
        "ForQuestionAnswering": Head("BertForQuestionAnswering", "bert.", "qa_outputs qa_outputs"),
        "ForMultipleChoice": Head("BertForMultipleChoice", "bert.", "classifier classifier"),
    },
    also_loads={"BertForPreTraining": "BertForMaskedLM"},
    left_behind=r"cls\.seq_relationship\..*|(bert\.)?pooler\..*",
)

# RoBERTa: Liu et al. 2019. As BERT, but positions start at the padding token's id + 1 --------------------------------


def roberta_to_ours(stock: Any) -> dict[str, Any]:
    offset = stock.pad_token_id + 1
    return {
        **with_segments(stock),
        "position_offset": offset,
        "max_position_embeddings": stock.max_position_embeddings - offset,
    }


ROBERTA = Family(
    name="roberta",
    ours="DeceroEncoder",
    fields=BERT_FIELDS,
    fixed=BERT_FIXED,
    to_ours=roberta_to_ours,
    to_stock=lambda ours: {"max_position_embeddings": ours.max_position_embeddings + ours.pad_token_id + 1},
    by_tensors=("pooling_layer",),
    tensors=BERT_TENSORS,
    heads={
        "Model": Head("RobertaModel"),
        "ForMaskedLM": Head(
            "RobertaForMaskedLM",
            "roberta.",
            """
            lm_head.transform.0         lm_head.dense
            lm_head.transform.2         lm_head.layer_norm
            lm_head.decoder             lm_head.decoder
            lm_head.decoder.bias        lm_head.bias
            """,
            fixed={"hidden_act": "gelu"},  # the head always uses GELU
        ),
        "ForSequenceClassification": Head(
            "RobertaForSequenceClassification",
            "roberta.",
            """
            model.pooler.dense          classifier.dense
            classifier                  classifier.out_proj
            """,
        ),
        "ForTokenClassification": Head("RobertaForTokenClassification", "roberta.", "classifier classifier"),
        "ForQuestionAnswering": Head("RobertaForQuestionAnswering", "roberta.", "qa_outputs qa_outputs"),
        "ForMultipleChoice": Head("RobertaForMultipleChoice", "roberta.", "classifier classifier"),
    },
    left_behind=r"(roberta\.)?pooler\..*",
)

# DistilBERT: Sanh et al. 2019. Without its sequence classifier, which has a ReLU where ours has a tanh ---------------

DISTILBERT = Family(
    name="distilbert",
    ours="DeceroEncoder",
    fields="""
        vocab_size
        hidden_size                     dim
        num_hidden_layers               n_layers
        num_attention_heads             n_heads
        intermediate_size               hidden_dim
        hidden_act                      activation
        hidden_dropout_prob             dropout
        hidden_dropout_prob             qa_dropout
        attention_probs_dropout_prob    attention_dropout
        classifier_dropout              seq_classif_dropout
        max_position_embeddings
        initializer_range
        tie_word_embeddings
        pad_token_id
        bos_token_id
        eos_token_id
    """,
    fixed={**BERT_FIXED, "type_vocab_size": 0, "layer_norm_eps": 1e-12},
    to_ours=whole_heads,
    tensors="""
        embed_tokens                        embeddings.word_embeddings
        embed_positions.embed_positions     embeddings.position_embeddings
        embed_norm                          embeddings.LayerNorm
        layers.{i}.self_attn.q_proj         transformer.layer.{i}.attention.q_lin
        layers.{i}.self_attn.k_proj         transformer.layer.{i}.attention.k_lin
        layers.{i}.self_attn.v_proj         transformer.layer.{i}.attention.v_lin
        layers.{i}.self_attn.o_proj         transformer.layer.{i}.attention.out_lin
        layers.{i}.post_attn_norm           transformer.layer.{i}.sa_layer_norm
        layers.{i}.mlp.up_proj              transformer.layer.{i}.ffn.lin1
        layers.{i}.mlp.down_proj            transformer.layer.{i}.ffn.lin2
        layers.{i}.post_mlp_norm            transformer.layer.{i}.output_layer_norm
    """,
    heads={
        "Model": Head("DistilBertModel"),
        "ForMaskedLM": Head(
            "DistilBertForMaskedLM",
            "distilbert.",
            """
            lm_head.transform.0         vocab_transform
            lm_head.transform.2         vocab_layer_norm
            lm_head.decoder             vocab_projector
            """,
        ),
        "ForTokenClassification": Head("DistilBertForTokenClassification", "distilbert.", "classifier classifier"),
        "ForQuestionAnswering": Head("DistilBertForQuestionAnswering", "distilbert.", "qa_outputs qa_outputs"),
    },
)

# ModernBERT: Warner et al. 2024 --------------------------------------------------------------------------------------


def modernbert_to_ours(stock: Any) -> dict[str, Any]:
    full, local = (stock.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    scaled_alike = local == full and local["rope_type"] != "default"
    return {
        **whole_heads(stock),
        **rope_to_ours(full),
        "local_rope_theta": None if scaled_alike else local["rope_theta"],
        "sliding_window": stock.local_attention // 2,
    }


def modernbert_to_stock(ours: Any) -> dict[str, Any]:
    full = rope_to_stock(ours)
    local = {"rope_type": "default", "rope_theta": ours.local_rope_theta} if ours.local_rope_theta else full
    return {
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "local_attention": 2 * (ours.sliding_window or 64),
    }


def modernbert_for_4(ours: Any) -> dict[str, Any]:
    """Every nth layer has full attention: the only pattern that transformers 4 supports."""
    full = [i for i, kind in enumerate(ours.layer_types) if kind == "full_attention"]
    every = full[1] if len(full) > 1 else ours.num_hidden_layers
    thetas = {"global_rope_theta": ours.rope_theta, "local_rope_theta": ours.local_rope_theta or ours.rope_theta}
    return thetas | (
        {"global_attn_every_n_layers": every} if full == [*range(0, ours.num_hidden_layers, every)] else {}
    )


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
    },
    to_ours=modernbert_to_ours,
    to_stock=modernbert_to_stock,
    for_4=modernbert_for_4,
    unread="""
        initializer_cutoff_factor cls_token_id sep_token_id classifier_pooling deterministic_flash_attn
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
    },
)
