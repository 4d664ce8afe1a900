"""How well text is foreseen: by a causal model, ours or anybody's, and by what has learnt nothing deep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from decero.config.pretraining import EvaluateCausalLM
from decero.data.causal import CausalLanguageModeling, count_bytes, tokenize_text
from decero.data.collators import IGNORED
from decero.data.corpus import load_corpus
from decero.data.tokenization import count_tokens
from decero.errors import UserError
from decero.evaluation.baselines import COMPRESSORS, ByteNgrams, compressed_bits_per_byte
from decero.evaluation.text_metrics import likelihood_figures
from decero.execution.objective import Objective, language_model
from decero.training.evaluation import mean_loss, row_losses
from decero.training.runs import Run, main_first

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
    found = mean_loss(accelerator, model, rows, text_objective(tokenizer), batch_size)
    tokens = int(found["scored"])
    return {"loss": found["loss"]} | likelihood_figures(found["loss"] * tokens, tokens, count_bytes(rows))


def text_objective(tokenizer: PreTrainedTokenizerBase) -> Objective:
    """What `text_likelihood` scores: all tokens of text, no ends of documents."""
    return language_model(CausalLanguageModeling(tokenizer, score_ends=False))


@dataclass
class RepeatedBigrams:
    """Score only the tokens of text that repeat a bigram of their row: the same two tokens stood there before.

    These are the tokens that recall foresees ("AR hits": Arora et al. 2023, section 2).
    """

    collate: CausalLanguageModeling

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.collate(rows)
        pairs_BL2 = torch.stack([batch["input_ids"], batch["labels"]], dim=-1).tolist()
        seen = [[False] * len(row) for row in pairs_BL2]
        for row, hits in zip(pairs_BL2, seen, strict=True):
            before: set[tuple[int, int]] = set()
            for place, pair in enumerate(map(tuple, row)):
                hits[place] = pair in before
                before.add(pair)
        return batch | {"labels": batch["labels"].masked_fill(~torch.tensor(seen), IGNORED)}


def bigram_slices(
    accelerator: Accelerator, model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int,
    whole: dict[str, float],
) -> dict[str, float]:  # fmt: skip
    """Perplexity of the tokens that repeat a bigram of their row, and of the others; and the share of the former.

    whole: what `text_likelihood` gave for all tokens of the same rows. Reads the repeated tokens in a second pass.
    """
    collate = CausalLanguageModeling(tokenizer, score_ends=False)
    repeated = mean_loss(accelerator, model, rows, language_model(RepeatedBigrams(collate)), batch_size)
    tokens, hits = count_tokens(rows) - len(rows), int(repeated["scored"])
    nats = repeated["loss"] * hits if hits else 0.0  # the mean of no token is NaN
    others = (whole["loss"] * tokens - nats) / max(1, tokens - hits)
    return {
        "repeated_perplexity": math.exp(repeated["loss"]) if hits else math.nan,
        "other_perplexity": math.exp(others) if tokens > hits else math.nan,
        "repeated_share": hits / max(1, tokens),
    }


def document_likelihood(
    accelerator: Accelerator, model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> tuple[dict[str, float], pd.DataFrame]:
    """As `text_likelihood`, and a row a document: `document`, `nats`, `tokens`, `bytes` (null where they are lost)."""
    found = row_losses(accelerator, model, rows, text_objective(tokenizer), batch_size)
    ends = np.asarray(rows["ends"][:], dtype=np.int64)
    sizes = pd.array(rows["bytes"][:], dtype="Int64")
    table = pd.DataFrame({"document": np.cumsum(ends) - ends, **found, "bytes": sizes})
    documents = table.groupby("document", as_index=False).sum(min_count=1)
    nats, tokens = float(found["nats"].sum()), int(found["tokens"].sum())
    return {"loss": nats / max(tokens, 1)} | likelihood_figures(nats, tokens, count_bytes(rows)), documents


def baseline_bits_per_byte(name: str, train: Sequence[str], test: Sequence[str]) -> float:
    """Bits a byte of the `test` documents for one of BASELINES that has read the `train` documents.

    Documents are put end to end with a zero byte between them. n-grams do not pay for those, as a model does not pay
    for ends; a compressor's bill cannot be itemised, so it pays.
    """
    read, text = (BETWEEN.join([*texts, ""]) for texts in (train, test))
    sizes = np.array([len(document.encode()) for document in test])
    if name != "ngram":
        return compressed_bits_per_byte(read, text, name) * len(text.encode()) / int(sizes.sum())
    return float(ngram_bits(train, test).sum() / sizes.sum())


def ngram_bits(train: Sequence[str], test: Sequence[str]) -> np.ndarray:
    """Bits that byte n-grams of the `train` documents need for each `test` document, float64 (documents,)."""
    read, text = (BETWEEN.join([*texts, ""]) for texts in (train, test))
    ends = np.cumsum([len(document.encode()) + 1 for document in test])
    bits = -np.log2(ByteNgrams(read).probabilities(text))
    bits[ends - 1] = 0
    return np.add.reduceat(bits, np.concatenate([[0], ends[:-1]]))


def scored_rows(run: Run, tokenizer: PreTrainedTokenizerBase) -> tuple[DatasetDict, Dataset]:
    """The corpus of an evaluation, and the token rows of the split that is scored. Train is read for baselines only.

    Raises UserError for a split that is not there.
    """
    config, data = run.config, run.config.data
    with main_first(run.accelerator):
        corpus = load_corpus(**data.source(), needs_train=bool(config.baselines) or config.split == "train")
        if config.split not in corpus:
            raise UserError(f"split: the corpus has no {config.split}, only {', '.join(corpus)}; name its files")
        rows = tokenize_text(
            corpus[config.split], tokenizer, max_length=data.max_length, text_column=data.text_column,
            start_token=data.start_token, num_proc=data.num_proc, where=config.split,
        )  # fmt: skip
    return corpus, rows


def rows_facts(rows: Dataset) -> dict[str, int | None]:
    """`bytes` of text (None where tokens do not give it back) and `tokens` of text in all rows."""
    return {"bytes": count_bytes(rows), "tokens": count_tokens(rows) - len(rows)}


def baselines(config: EvaluateCausalLM, corpus: DatasetDict) -> dict[str, float]:
    """Bits a byte of the baselines that the settings ask for."""
    if not config.baselines:
        return {}
    train, text = ([t or "" for t in corpus[split][config.data.text_column]] for split in ("train", config.split))
    return {name: baseline_bits_per_byte(name, train, text) for name in config.baselines}
