"""Table of ELECTRA: Clark et al. 2020. As BERT, but embeddings may have another width, and other heads pretrain it.

Without its sequence classifier and its multiple choice, which pool in other ways than ours.
"""

from typing import Any

from decero.hub.families.encoders import BERT_FIELDS, BERT_FIXED, BERT_TENSORS, with_segments
from decero.hub.table import Family, Head


def electra_to_ours(stock: Any) -> dict[str, Any]:
    same = stock.embedding_size == stock.hidden_size
    return {**with_segments(stock), "embedding_size": None if same else stock.embedding_size}


ELECTRA = Family(
    name="electra",
    ours="DeceroEncoder",
    fields=BERT_FIELDS + "max_position_embeddings",
    fixed=BERT_FIXED,
    to_ours=electra_to_ours,
    to_stock=lambda ours: {"embedding_size": ours.embedding_size or ours.hidden_size},
    unread="summary_type summary_use_proj summary_activation summary_last_dropout",
    tensors=BERT_TENSORS.replace("pooler.dense                        pooler.dense", "")
    + "embed_projection embeddings_project",
    heads={
        "Model": Head("ElectraModel"),
        "ForPreTraining": Head(
            "ElectraForPreTraining",
            "electra.",
            """
            discriminator_predictions.dense                 discriminator_predictions.dense
            discriminator_predictions.dense_prediction      discriminator_predictions.dense_prediction
            """,
        ),
        "ForMaskedLM": Head(
            "ElectraForMaskedLM",
            "electra.",
            """
            lm_head.transform.0         generator_predictions.dense
            lm_head.transform.2         generator_predictions.LayerNorm
            lm_head.decoder             generator_lm_head
            """,
            fixed={"hidden_act": "gelu"},  # the head always uses GELU
        ),
        "ForTokenClassification": Head("ElectraForTokenClassification", "electra.", "classifier classifier"),
        "ForQuestionAnswering": Head("ElectraForQuestionAnswering", "electra.", "qa_outputs qa_outputs"),
    },
)
