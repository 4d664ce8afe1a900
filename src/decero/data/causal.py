"""Rows and labels for a causal language model over whole documents; for prompts see prompt_completion.py.

Labels are already shifted: labels[t] is the token after input_ids[t], and `token_loss` compares it with logits[t]. The
forward pass of a model shifts its labels itself, so never pass these labels to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from transformers import PreTrainedTokenizerBase

from decero.data.collators import IGNORED
from decero.data.pairs import Pair, padded
from decero.data.special_tokens import TEXT
from decero.data.stream import Stream, Texts
from decero.data.tokenization import keeping_tokenizer_settings, map_rows
from decero.errors import UserError, did_you_mean

PLAIN: dict[str, Any] = {"add_special_tokens": False} | TEXT  # tokenizer arguments for a text and nothing else


def start_id(tokenizer: PreTrainedTokenizerBase, token: str | None = None, where: str = "data.start_token") -> int:
    """Return the id of the start token: `token`, else the tokenizer's bos, else its eos.

    where: the setting that names it, for messages. Raises UserError when the tokenizer has no such token.
    """
    if token is None:
        return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        special = ", ".join(tokenizer.all_special_tokens)
        near = did_you_mean(token, tokenizer.all_special_tokens)
        raise UserError(
            f"{where}: unknown token {token} in tokenizer {tokenizer.name_or_path}"
            f"{near or f'; its special tokens: {special}'}"
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
    """Cut each document into rows: the start token, then up to `max_length` - 1 tokens of text.

    No text is left out. Every row begins with the start token, also a row inside a document. So each token of text has
    a token before it, and is scored. A row cannot see the rows before it.

    Returns the columns
        input_ids: list of int32.
        ends: bool, whether the document ends with this row.
        bytes: int64, the length in UTF-8 of the text in this row; the rows of a document add up to its length. Null
            when decoding a document's tokens does not return exactly its text: the tokenizer lowercases or drops white
            space, so the tokens encode another text.
    For `Texts`, returns a `Stream` of the same rows. where: the name of the data in error messages.

    Raises UserError when there is no text.
    """
    start = start_id(tokenizer, start_token)
    room = max_length - 1

    def cut(documents):
        rows: dict[str, list] = {"input_ids": [], "ends": [], "bytes": []}
        texts = [text or "" for text in documents]
        encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **PLAIN)
        decoded = tokenizer.batch_decode(encoded["input_ids"], clean_up_tokenization_spaces=False)
        for text, ids, encoding, again in zip(texts, encoded["input_ids"], encoded.encodings, decoded, strict=True):
            begins = range(0, len(ids), room)
            cuts = [0, *(encoding.token_to_chars(begin)[0] for begin in begins[1:]), len(text)]
            for begin, left, right in zip(begins, cuts, cuts[1:], strict=False):
                rows["input_ids"].append([start, *ids[begin : begin + room]])
                rows["ends"].append(begin + room >= len(ids))
                rows["bytes"].append(len(text[left:right].encode()) if again == text else None)
        return rows

    if isinstance(dataset, Texts):
        return Stream(dataset, keeping_tokenizer_settings(tokenizer, cut), max_length)
    features = Features({"input_ids": ListOf(Value("int32")), "ends": Value("bool"), "bytes": Value("int64")})
    key = ("text", max_length, text_column, start)
    rows = map_rows(
        dataset, lambda batch: cut(batch[text_column]), features, tokenizer, key, num_proc, f"tokenize {where}"
    )
    if len(rows) == 0:
        raise UserError(f"{where}: no text is left after tokenization; is column {text_column!r} the text?")
    return rows


def count_bytes(rows: Dataset) -> int | None:
    """Return the UTF-8 bytes of the text in `tokenize_text`'s rows, None when any row has null."""
    sizes = rows["bytes"][:]
    return None if None in sizes else sum(sizes)


@dataclass
class Causal:
    """Pad inputs and labels on the right to the longest row of the batch."""

    tokenizer: PreTrainedTokenizerBase

    def pair(self, row: dict) -> Pair:
        """Return the input ids and their labels, both (length,). Each objective overrides this."""
        raise NotImplementedError

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, (batch, length) each."""
        read, labels = zip(*map(self.pair, rows), strict=True)
        candidates = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0  # masked, so any id will do
        batch = {"input_ids": padded(read, next(token for token in candidates if token is not None))}
        batch["attention_mask"] = padded([np.ones_like(ids) for ids in read], 0)
        batch["labels"] = padded(labels, IGNORED)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


@dataclass
class CausalLanguageModeling(Causal):
    """Predict each token from the tokens before it (Radford et al. 2018, eq. 1), over rows of `tokenize_text`.

    All tokens of text are scored; the first of a row is predicted from the start token alone. score_ends: also score
    the end token after each document, so that the model learns to stop. A row that is cut inside a document has none.
    """

    score_ends: bool = True

    def pair(self, row: dict) -> Pair:
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        end = self.tokenizer.eos_token_id if self.score_ends and row["ends"] else IGNORED
        return ids, np.append(ids[1:], end)


@dataclass
class Continuation(CausalLanguageModeling):
    """Score only the tokens after a prefix: prefix language modelling with a decoder.

    The prefix has 0 to n - 1 of the n text tokens of a row, with uniform probability. The decoder reads it from left to
    right, unlike Raffel et al. 2020, section 3.2.3.

    The prefix is a pure function of (seed, epoch, index); `frozen=True` treats every epoch as epoch 0.
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
