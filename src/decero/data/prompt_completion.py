"""Completions of prompts: rows and labels for a decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from transformers import PreTrainedTokenizerBase

from decero.data.causal import PLAIN, Causal
from decero.data.chat_template import render_chat
from decero.data.collators import IGNORED
from decero.data.corpus import check_text, refuse_missing
from decero.data.pairs import Pair
from decero.data.special_tokens import encode_framed, special_tokens_around
from decero.data.tokenization import map_rows
from decero.errors import UserError


@dataclass
class PromptCompletion(Causal):
    """Predict a completion from its prompt, over rows of `tokenize_prompts` or `tokenize_dialogues`.

    The prompt is not scored, except for the places that the row names in `scored`: earlier answers of a dialogue.
    """

    def pair(self, row: dict) -> Pair:
        prompt, completion = (np.asarray(row[name], dtype=np.int64) for name in ("input_ids", "labels"))
        labels = np.concatenate([np.full(len(prompt) - 1, IGNORED), completion])
        borders = row["scored"] if row.get("scored") is not None else ()
        for begin, end in zip(borders[::2], borders[1::2], strict=True):
            labels[begin - 1 : end - 1] = prompt[begin:end]
        return np.concatenate([prompt, completion[:-1]]), labels


def tokenize_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_source_length: int,
    max_target_length: int,
    source_column: str = "source",
    target_column: str = "target",
    prefix: str = "",
    separator: str = "\n",
    chat: bool = False,
    num_proc: int | None = None,
    where: str = "data",
) -> Dataset:
    """Tokenize each pair to a row of `input_ids` (prompt), `labels` (completion and end token) and `truncated`.

    truncated: whether either side was cut. where: the name of the data in error messages.

    A prompt is the tokenizer's start tokens + prefix + source + `separator`. With `chat` it is one user turn, prefix +
    source, in the tokenizer's chat template, up to where the answer begins. Prompt and completion are tokenized
    separately, so that a prompt has the same tokens at inference, when there is no completion yet.

    A prompt over `max_source_length` loses the end of its source. A completion over `max_target_length` loses its end
    and its end token, so the model does not learn to stop there.

    Raises UserError: a missing (null) or non-text side; a prompt without room for a source; a chat template that
    fails, or in which the answer does not follow the prompt.
    """
    for column, setting in ((source_column, "source_column"), (target_column, "target_column")):
        check_text(dataset, column, where, setting)
    refuse_missing(dataset, (source_column, target_column), where)
    encoder = _Chat(tokenizer) if chat else _Plain(tokenizer, separator)

    def tokenize(batch):
        rows: dict[str, list] = {"input_ids": [], "labels": [], "truncated": []}
        for source, target in zip(batch[source_column], batch[target_column], strict=True):
            prompt, cut = _fit(lambda text: encoder.prompt(prefix + text), source, tokenizer, max_source_length)
            completion = encoder.completion(prefix + source, target)
            rows["input_ids"].append(prompt)
            rows["labels"].append(completion[:max_target_length])
            rows["truncated"].append(cut or len(completion) > max_target_length)
        return rows

    ids = ListOf(Value("int32"))
    features = Features({"input_ids": ids, "labels": ids, "truncated": Value("bool")})
    key: tuple = (
        "chat" if chat else "prompts",
        max_source_length,
        max_target_length,
        source_column,
        target_column,
        prefix,
    )
    key += (tokenizer.eos_token, str(tokenizer.chat_template)) if chat else (tokenizer.eos_token, separator)
    return map_rows(dataset, tokenize, features, tokenizer, key, num_proc, f"tokenize {where}")


@dataclass
class _Plain:
    """Encode prompt and completion as plain text."""

    tokenizer: PreTrainedTokenizerBase
    separator: str

    def __post_init__(self):
        self.start, _ = special_tokens_around(self.tokenizer)

    def prompt(self, text: str) -> list[int]:
        return self.start + self.tokenizer(text + self.separator, **PLAIN)["input_ids"]

    def completion(self, text: str, answer: str) -> list[int]:
        return [*self.tokenizer(answer, **PLAIN)["input_ids"], self.tokenizer.eos_token_id]


@dataclass
class _Chat:
    """Encode a user turn and an assistant turn with the tokenizer's chat template."""

    tokenizer: PreTrainedTokenizerBase

    def render(self, question: str, answer: str | None = None) -> str:
        turns = [{"role": "user", "content": question}]
        turns += [] if answer is None else [{"role": "assistant", "content": answer}]
        return render_chat(self.tokenizer, turns, "set objective.chat_template=off")

    def prompt(self, text: str) -> list[int]:
        return encode_framed(self.tokenizer, self.render, text)

    def completion(self, text: str, answer: str) -> list[int]:
        """Return the ids after the prompt, up to the first end token; add one if the template writes none."""
        before, whole = self.render(text), self.render(text, answer)
        if not whole.startswith(before):
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path}: its chat template changes the prompt when an answer "
                "follows; set objective.chat_template=off"
            )
        end = self.tokenizer.eos_token_id
        ids = encode_framed(self.tokenizer, lambda answer: self.render(text, answer)[len(before) :], answer)
        return [*(ids[: ids.index(end)] if end in ids else ids), end]


def _fit(
    encode: Callable[[str], Sequence[int]], source: str, tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[int], bool]:
    """Encode a prompt in at most `limit` ids by cutting the end of `source`. Return the ids and whether it was cut."""
    ids, cut = encode(source), False
    while len(ids) > limit:
        if not source:
            raise UserError(
                f"data.max_source_length {limit} leaves no room for a source: the prompt without it has {len(ids)} "
                "tokens; raise data.max_source_length"
            )
        offsets = tokenizer(source, return_offsets_mapping=True, **PLAIN)["offset_mapping"]
        keep = len(offsets) - (len(ids) - limit)
        end = min(offsets[keep][0], len(source) - 1) if keep > 0 else 0  # a space at the end may be an empty token
        source, cut = source[:end], True
        ids = encode(source)
    return list(ids), cut
