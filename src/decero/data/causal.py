"""Text that a decoder goes on with: whole documents, and completions of prompts.

Labels stand beside the logits that answer them: labels[t] is the token after input_ids[t], which `token_loss` scores as
it is. The models' own forward shifts its labels, so it must not be given these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from decero.data.collators import IGNORED
from decero.data.pairs import Pair, padded
from decero.data.stream import Stream, Texts
from decero.data.tokenization import leaving_no_trace, map_rows
from decero.data.tokenizer import around
from decero.errors import UserError, did_you_mean

PLAIN: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}  # "<s>" is text


def strip_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take away the end token that a tokenizer puts after a text (ours do, as RoBERTa's does), and keep the start.

    For whoever reads a prompt with it afterwards: a text that has ended is not gone on with.
    """
    start, end = around(tokenizer)
    if end:
        first = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.convert_ids_to_tokens(start)]
        single = " ".join([*(token for token, _ in first), "$A"])
        backend: Any = tokenizer.backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(single, f"{single} $B", first)


def start_id(tokenizer: PreTrainedTokenizerBase, token: str | None = None) -> int:
    """Id of what stands before a text: `token`, or the tokenizer's bos, or its eos where it has no bos.

    Raises UserError for a token that it does not have.
    """
    if token is None:
        return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        special = ", ".join(tokenizer.all_special_tokens)
        near = did_you_mean(token, tokenizer.all_special_tokens)
        raise UserError(
            f"data.start_token: {token} is no token of {tokenizer.name_or_path}{near or f'; {special} are'}"
        )
    return vocabulary[token]


def tokenize_text(
    dataset: Dataset | Texts,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    text_column: str = "text",
    start_token: str | None = None,
    num_proc: int | None = None,
    where: str = "data",
) -> Any:
    """Cut each document into rows: the start token, then at most `max_length` - 1 tokens of text. No text is left out.

    A row that goes on with a document begins with the start token, too, so that every token of text has something
    before it and is scored; it sees nothing of the rows before, which is what `max_length` costs.

    Returns `input_ids` (list of int32), `ends` (bool: does its document end here?) and `bytes` (int64): the UTF-8 bytes
    of the text that the row's tokens stand for, which add up to the document's; null where the tokens of a document do
    not give it back to the byte (a tokenizer that lowercases, or drops white space), for then they encode another text.
    Of `Texts`, a `Stream` of the same rows.

    Raises UserError when there is no text.
    """
    start = start_id(tokenizer, start_token)
    room = max_length - 1

    def cut(documents):
        rows: dict[str, list] = {"input_ids": [], "ends": [], "bytes": []}
        texts = [text or "" for text in documents]
        encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **PLAIN)
        back = tokenizer.batch_decode(encoded["input_ids"], clean_up_tokenization_spaces=False)
        for text, ids, encoding, found in zip(texts, encoded["input_ids"], encoded.encodings, back, strict=True):
            begins = range(0, len(ids), room)
            cuts = [0, *(encoding.token_to_chars(begin)[0] for begin in begins[1:]), len(text)]
            for begin, left, right in zip(begins, cuts, cuts[1:], strict=False):
                rows["input_ids"].append([start, *ids[begin : begin + room]])
                rows["ends"].append(begin + room >= len(ids))
                rows["bytes"].append(len(text[left:right].encode()) if found == text else None)
        return rows

    if isinstance(dataset, Texts):
        return Stream(dataset, leaving_no_trace(tokenizer, cut), max_length)
    features = Features({"input_ids": ListOf(Value("int32")), "ends": Value("bool"), "bytes": Value("int64")})
    key = ("text", max_length, text_column, start)
    rows = map_rows(
        dataset, lambda batch: cut(batch[text_column]), features, tokenizer, key, num_proc, f"tokenize {where}"
    )
    if len(rows) == 0:
        raise UserError(f"{where}: no text is left after tokenization; is column {text_column!r} the text?")
    return rows


def count_bytes(rows: Dataset) -> int | None:
    """UTF-8 bytes of the text of `tokenize_text`'s rows; None where tokens do not give the text back."""
    sizes = rows["bytes"][:]
    return None if None in sizes else sum(sizes)


@dataclass
class Causal:
    """Pads what is read and what is to follow to the longest of the batch, on the right."""

    tokenizer: PreTrainedTokenizerBase

    def pair(self, row: dict) -> Pair:
        """What is read and the labels beside it, both (length,). An objective overrides this."""
        raise NotImplementedError

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Returns `input_ids`, `attention_mask` and `labels`, (batch, length) each."""
        read, labels = zip(*map(self.pair, rows), strict=True)
        candidates = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0  # nobody looks at it
        batch = {"input_ids": padded(read, next(token for token in candidates if token is not None))}
        batch["attention_mask"] = padded([np.ones_like(ids) for ids in read], 0)
        batch["labels"] = padded(labels, IGNORED)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


@dataclass
class CausalLanguageModeling(Causal):
    """Each token from those before it (Radford et al. 2018, eq. 1), over rows of `tokenize_text`.

    All tokens of text are scored, the first of a row given the start token alone; and with `score_ends` the end token
    after the last of a document, which is how a model learns to stop. Where a document is cut, no end follows.
    """

    score_ends: bool = True

    def pair(self, row: dict) -> Pair:
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        end = self.tokenizer.eos_token_id if self.score_ends and row["ends"] else IGNORED
        return ids, np.append(ids[1:], end)


@dataclass
class Continuation(CausalLanguageModeling):
    """Only what follows a prefix is scored: a decoder's prefix language model (Raffel et al. 2020, section 3.2.3, with
    a prefix that is read from left to right). The prefix is 0 to n - 1 of a row's n tokens of text, all as likely.

    A pure function of (seed, epoch, index); `frozen=True` reads every epoch as epoch 0.
    """

    seed: int = 0
    frozen: bool = False

    def pair(self, row: dict) -> Pair:
        read, labels = super().pair(row)
        rng = np.random.default_rng([self.seed, 0 if self.frozen else row["epoch"], row["index"]])
        labels[: rng.integers(0, len(read) - 1)] = IGNORED
        return read, labels


OBJECTIVES: dict[str, Callable[..., CausalLanguageModeling]] = {
    "causal_lm": lambda tokenizer, seed: CausalLanguageModeling(tokenizer),
    "continuation": lambda tokenizer, seed: Continuation(tokenizer, seed=seed),
}
