"""Table of EuroBERT: Boizard et al. 2025. In layout a Llama that sees both sides; no head finds answers in a text."""

from typing import Any

from decero.hub.families.common import PRE_NORM, RMS_NORM, rope_to_ours, rope_to_stock
from decero.hub.families.decoders import LLAMA_FIELDS, LLAMA_TENSORS
from decero.hub.table import Family, Head

POOLING = {"bos": "cls", "mean": "mean", "late": "late"}  # stock -> ours


def eurobert_to_ours(stock: Any) -> dict[str, Any]:
    return {
        **rope_to_ours(stock.rope_parameters),
        "lm_head_bias": stock.mlp_bias,
        "classifier_pooling": POOLING[stock.classifier_pooling],
    }


def eurobert_to_stock(ours: Any) -> dict[str, Any]:
    return {
        "rope_parameters": rope_to_stock(ours),
        "classifier_pooling": {name: stock for stock, name in POOLING.items()}[ours.classifier_pooling],
    }


EUROBERT = Family(
    name="eurobert",
    ours="DeceroEncoder",
    fields=LLAMA_FIELDS,
    fixed={
        **PRE_NORM,
        **RMS_NORM,
        "gated_mlp": True,
        "position_embedding_type": "rotary",
        "type_vocab_size": 0,
        "pooling_layer": False,
        "lm_head_transform": False,
    },
    to_ours=eurobert_to_ours,
    to_stock=eurobert_to_stock,
    unread="pretraining_tp mask_token_id",
    tensors=LLAMA_TENSORS,
    heads={
        "Model": Head("EuroBertModel"),
        "ForMaskedLM": Head("EuroBertForMaskedLM", "model.", "lm_head.decoder lm_head"),
        "ForSequenceClassification": Head(
            "EuroBertForSequenceClassification",
            "model.",
            """
            model.pooler.dense          dense
            classifier                  classifier
            """,
            fixed={"pooler_act": "gelu"},
        ),
        "ForTokenClassification": Head("EuroBertForTokenClassification", "model.", "classifier classifier"),
    },
)
