"""The tables of all stock families: their names for our fields and tensors. table.py and tensors.py read them.

A table is complete. A stock option on no line must have its class's default. A field of ours on no line must have its
value in `fixed`, or its default. Every tensor must be on a line.
"""

from decero.hub.families.decoders import GPT2, LLAMA, STABLELM
from decero.hub.families.detection import DETR
from decero.hub.families.electra import ELECTRA
from decero.hub.families.encoder_decoders import MARIAN, T5, T5_ENCODER
from decero.hub.families.encoders import BERT, DISTILBERT, ROBERTA
from decero.hub.families.eurobert import EUROBERT
from decero.hub.families.modernbert import MODERNBERT
from decero.hub.families.vision import DEIT, DEIT_DISTILLED, VIT

FAMILIES = (
    BERT, ROBERTA, DISTILBERT, ELECTRA, MODERNBERT, EUROBERT, GPT2, LLAMA, STABLELM, T5, T5_ENCODER, MARIAN, VIT, DEIT,
    DEIT_DISTILLED, DETR,
)  # fmt: skip
