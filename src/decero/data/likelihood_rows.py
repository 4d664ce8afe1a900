"""Make rows for the likelihood of a text: what a model reads, and which tokens it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decero.data.causal import start_id
from decero.data.collators import IGNORED
from decero.data.pairs import padded
from decero.data.special_tokens import special_tokens_around
from decero.data.word_rows import segment_ids
from decero.data.words import word_starts
from decero.errors import UserError, did_you_mean

Method = Literal["within_word_l2r", "original", "sentence_l2r"]


class ScoredPassage(NamedTuple):
    """The part of a text that a model reads at once.

    ids: its tokens, without special tokens. starts: whether a word begins at each of them. places: the tokens that are
    scored; None: all of them.
    """

    ids: tuple[int, ...]
    starts: tuple[bool, ...]
    places: tuple[int, ...] | None = None

    @property
    def scored(self) -> Sequence[int]:
        """Return the places of the tokens that are scored."""
        return range(len(self.ids)) if self.places is None else self.places


@dataclass(frozen=True)
class TokenizedText:
    """A text in tokens. size: its bytes in UTF-8; None where the tokens do not give the text back."""

    passages: list[ScoredPassage]
    size: int | None

    @property
    def tokens(self) -> int:
        return sum(len(passage.ids) for passage in self.passages)


class Row(NamedTuple):
    """input_ids: what the model reads. labels: the token that the logits of each place answer for, or -100."""

    input_ids: np.ndarray
    labels: np.ndarray


class LikelihoodRows:
    """Cut texts into passages, and make the rows in which every token of a passage that is scored is scored once.

    before, after: ids that stand around each passage and are not scored.

    Raises UserError for a slow tokenizer, which does not say where a token stands in the text.
    """

    causal: bool
    kind: str  # of number: log_likelihood, or pseudo_log_likelihood

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int], after: Sequence[int]):
        if not tokenizer.is_fast:
            problem = "it is a slow one and does not say where its tokens stand in a text"
            raise UserError(f"tokenizer {tokenizer.name_or_path}: {problem}; choose a fast one")
        self.tokenizer, self.before, self.after = tokenizer, list(before), list(after)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize texts as they are; a special token that is spelt out is text."""
        backend: Any = self.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        backend.no_truncation()
        backend.no_padding()
        spelt, backend.encode_special_tokens = backend.encode_special_tokens, True
        encoded = backend.encode_batch(list(texts), add_special_tokens=False)
        backend.encode_special_tokens = spelt
        return encoded

    def cut(self, texts: Sequence[str], max_length: int | None) -> list[TokenizedText]:
        """Tokenize texts; a special token that is spelt out is text. A longer text has several passages.

        max_length: most tokens of a row, with special tokens; None: no limit.
        Raises UserError when special tokens leave no room.
        """
        room = None if max_length is None else max_length - len(self.before) - len(self.after)
        if room is not None and room < 1:
            raise UserError(f"{max_length} tokens leave no room for text beside special tokens; allow more")
        encoded = self.encode(texts)
        again = self.tokenizer.batch_decode([e.ids for e in encoded], clean_up_tokenization_spaces=False)
        found = []
        for text, encoding, starts, decoded in zip(texts, encoded, word_starts(encoded, texts), again, strict=True):
            cuts = range(0, len(encoding.ids), room or max(1, len(encoding.ids)))
            parts = [slice(begin, end) for begin, end in pairwise([*cuts, len(encoding.ids)])]
            passages = [ScoredPassage(tuple(encoding.ids[part]), tuple(starts[part].tolist())) for part in parts]
            found.append(TokenizedText(passages, len(text.encode()) if decoded == text else None))
        return found

    def count(self, passage: ScoredPassage) -> int:
        """Return the number of rows of a passage."""
        raise NotImplementedError

    def row(self, passage: ScoredPassage, number: int) -> Row:
        """Return one of the rows of a passage. Scored tokens are in the order of the text, over all its rows."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Pad rows on the right to a batch."""
        pad = self.tokenizer.pad_token_id
        batch = {
            "input_ids": padded([row.input_ids for row in rows], 0 if pad is None else pad),
            "attention_mask": padded([np.ones_like(row.input_ids) for row in rows], 0),
            "labels": padded([row.labels for row in rows], IGNORED),
        }
        return {name: torch.from_numpy(values) for name, values in batch.items()}


class CausalRows(LikelihoodRows):
    """One row a passage: the start token, then the text. Every token is scored, given those before it.

    start_token: the tokenizer's bos, or else its eos, when not given.

    Raises UserError for an unknown start token, and for a tokenizer that has none.
    """

    causal, kind = True, "log_likelihood"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start_token: str | None = None):
        start = start_id(tokenizer, start_token, "start_token")
        if start is None:
            raise UserError(f"tokenizer {tokenizer.name_or_path}: no bos_token and no eos_token; give a start token")
        super().__init__(tokenizer, [start], [])

    def count(self, passage: ScoredPassage) -> int:
        return 1

    def row(self, passage: ScoredPassage, number: int) -> Row:
        labels = np.array(passage.ids)
        if passage.places is not None:
            labels[np.setdiff1d(np.arange(len(labels)), passage.places)] = IGNORED
        return Row(np.array([*self.before, *passage.ids[:-1]]), labels)


class DetectorRows(LikelihoodRows):
    """One row a passage, as it is. A discriminator says of each token whether it was replaced.

    The sum over tokens of ln p(original) is no probability of the text, but it orders texts that differ little.
    """

    causal, kind = False, "detection_score"

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer, *special_tokens_around(tokenizer))

    def count(self, passage: ScoredPassage) -> int:
        return 1

    def row(self, passage: ScoredPassage, number: int) -> Row:
        ids = np.array([*self.before, *passage.ids, *self.after])
        labels = np.full_like(ids, IGNORED)
        labels[len(self.before) : len(self.before) + len(passage.ids)] = passage.ids
        return Row(ids, labels)


class MaskedRows(LikelihoodRows):
    """A row a token: the token is masked and scored. The method says what else is masked.

    original: nothing else (Salazar et al. 2020, section 2). Later pieces of a word give its first ones away.
    within_word_l2r: the later tokens of its word (Kauf & Ivanova 2023, section 3).
    sentence_l2r: all later tokens (the same paper). The product over all tokens is then a probability of the text,
        given its number of tokens; the other two are not.

    Raises UserError for a tokenizer without a mask token.
    """

    causal = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, method: Method = "within_word_l2r"):
        if tokenizer.mask_token_id is None:
            raise UserError(f"tokenizer {tokenizer.name_or_path}: it has no mask_token; choose another")
        if method not in (known := get_args(Method)):
            near = did_you_mean(method, known)
            raise UserError(f"pseudo_likelihood: {method!r} is none of {', '.join(known)}{near}")
        super().__init__(tokenizer, *special_tokens_around(tokenizer))
        self.method = method
        self.kind = "log_likelihood" if method == "sentence_l2r" else "pseudo_log_likelihood"
        self.segments = segment_ids(tokenizer)

    def count(self, passage: ScoredPassage) -> int:
        return len(passage.scored)

    def masked(self, passage: ScoredPassage, number: int) -> Sequence[int]:
        """Return the places that are masked in a row."""
        place = passage.scored[number]
        end = {"original": place + 1, "sentence_l2r": len(passage.ids)}.get(self.method)
        if end is None:
            end = next((i for i in range(place + 1, len(passage.ids)) if passage.starts[i]), len(passage.ids))
        return range(place, end)

    def row(self, passage: ScoredPassage, number: int) -> Row:
        ids = np.array([*self.before, *passage.ids, *self.after])
        labels, first, place = np.full_like(ids, IGNORED), len(self.before), passage.scored[number]
        labels[first + place] = passage.ids[place]
        ids[[first + each for each in self.masked(passage, number)]] = self.tokenizer.mask_token_id
        return Row(ids, labels)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = super().collate(rows)
        if self.segments is not None:
            kinds = padded([self.segments(len(row.input_ids)) for row in rows], 0)
            batch["token_type_ids"] = torch.from_numpy(kinds)
        return batch


class TargetRows(MaskedRows):
    """A row a scored token: it and the later scored tokens are masked, so the product over all is a probability.

    hidden: all other tokens are masked, too. That is how likely the scored tokens are at their places without the rest
    of the text, the prior of Kurita et al. 2019 (section 2.2; they mask the attribute alone).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hidden: bool = False):
        super().__init__(tokenizer)
        self.kind, self.hidden = "log_likelihood", hidden

    def masked(self, passage: ScoredPassage, number: int) -> Sequence[int]:
        if not self.hidden:
            return passage.scored[number:]
        return sorted(set(range(len(passage.ids))) - set(passage.scored[:number]))
