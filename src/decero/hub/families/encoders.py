"""Tables of encoders: BERT, RoBERTa and DistilBERT."""

from typing import Any

from decero.errors import UserError
from decero.hub.families.common import BIASES, LAYER_NORM, POST_NORM, whole_heads
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


def learned_positions(ours: Any) -> dict[str, Any]:
    """transformers 4 has other kinds; converters, such as CTranslate2's, ask for this one by name."""
    return {"position_embedding_type": "absolute"}


BERT = Family(
    name="bert",
    ours="DeceroEncoder",
    fields=BERT_FIELDS + "max_position_embeddings",
    fixed=BERT_FIXED,
    to_ours=with_segments,
    for_4=learned_positions,
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


def rows_before_text(config: Any) -> int:
    """Return how many rows of the position table come before the first position."""
    if config.pad_token_id is None:
        raise UserError("pad_token_id=None has no counterpart in roberta, whose positions begin behind that id")
    return config.pad_token_id + 1


def roberta_to_ours(stock: Any) -> dict[str, Any]:
    offset = rows_before_text(stock)
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
    to_stock=lambda ours: {"max_position_embeddings": ours.max_position_embeddings + rows_before_text(ours)},
    for_4=learned_positions,
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


def dropout_of_head(ours: Any) -> float:
    """Return the dropout before the head, a number for DistilBERT. Ours may be None: that of hidden states."""
    return ours.hidden_dropout_prob if ours.classifier_dropout is None else ours.classifier_dropout


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
        max_position_embeddings
        initializer_range
        tie_word_embeddings
        pad_token_id
        bos_token_id
        eos_token_id
    """,
    fixed={**BERT_FIXED, "type_vocab_size": 0, "layer_norm_eps": 1e-12},
    to_ours=lambda stock: {**whole_heads(stock), "classifier_dropout": stock.seq_classif_dropout},
    to_stock=lambda ours: {"seq_classif_dropout": dropout_of_head(ours)},
    training="seq_classif_dropout",
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
