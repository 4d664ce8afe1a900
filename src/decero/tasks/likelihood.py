"""How well text is foreseen: by a causal model, ours or anybody's, and by what has learnt nothing deep."""

from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from decero.data.causal import CausalLanguageModeling, count_bytes
from decero.evaluation.baselines import COMPRESSORS, ByteNgrams, compressed_bits_per_byte
from decero.evaluation.text_metrics import bits_per_byte, perplexity
from decero.execution.objective import language_model
from decero.training.evaluation import mean_loss

BASELINES = ("ngram", *COMPRESSORS)
BETWEEN = "\0"  # documents, for the baselines


def text_likelihood(
    accelerator: Accelerator, model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> dict[str, float]:
    """`loss` (nats a token), `perplexity`, and `bits_per_byte` over all text of `tokenize_text`'s rows.

    Every token of text is scored once, given what stands before it in its row. Ends of documents are not scored: they
    are no bytes, and every tokenizer has its own. Bits a byte compare over tokenizers, the others do not; they are left
    out where the tokens do not give the text back to the byte, for then they would be those of another text.
    """
    scored = language_model(CausalLanguageModeling(tokenizer, score_ends=False))
    found = mean_loss(accelerator, model, rows, scored, batch_size)
    tokens, size = int(found["scored"]), count_bytes(rows)
    nats = found["loss"] * tokens
    metrics = {"loss": found["loss"], "perplexity": perplexity(nats, tokens)}
    return metrics | ({} if size is None else {"bits_per_byte": bits_per_byte(nats, size)})


def baseline_bits_per_byte(name: str, train: Sequence[str], test: Sequence[str]) -> float:
    """Bits a byte of the `test` documents for one of BASELINES that has read the `train` documents.

    Documents are put end to end with a zero byte between them. n-grams do not pay for those, as a model does not pay
    for ends; a compressor's bill cannot be itemised, so it pays.
    """
    read, text = (BETWEEN.join([*texts, ""]) for texts in (train, test))
    sizes = np.array([len(document.encode()) for document in test])
    if name != "ngram":
        return compressed_bits_per_byte(read, text, name) * len(text.encode()) / int(sizes.sum())
    bits = -np.log2(ByteNgrams(read).probabilities(text))
    bits[np.cumsum(sizes + 1) - 1] = 0
    return float(bits.sum() / sizes.sum())
