"""The tables: what each stock family calls our fields and our tensors. How they are read: table.py, tensors.py.

A family is whole: a stock option that no line maps must stand at its class's default, a field of ours that no line maps
must stand where `fixed` has it (or at its own default), and every tensor must be on a line.
"""

from decero.hub.families.decoders import GPT2, LLAMA
from decero.hub.families.encoder_decoders import MARIAN, T5, T5_ENCODER
from decero.hub.families.encoders import BERT, DISTILBERT, MODERNBERT, ROBERTA

FAMILIES = (BERT, ROBERTA, DISTILBERT, MODERNBERT, GPT2, LLAMA, T5, T5_ENCODER, MARIAN)
