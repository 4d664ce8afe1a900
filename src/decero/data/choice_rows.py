"""Tokenize choices, and collate them: each choice of a row becomes one text of the batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from decero.data.causal import PLAIN
from decero.data.collators import ClassificationCollator
from decero.data.prompt_completion import PromptCompletion
from decero.data.special_tokens import TEXT, special_tokens_around
from decero.data.tokenization import map_rows
from decero.errors import UserError

IDS = List(Value("int32"))


def tokenize_choices(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int, num_proc: int | None = None,
    where: str = "data",
) -> Dataset:  # fmt: skip
    """Tokenize rows of `read_choices` for a head. The texts of a row's choices follow each other in one row.

    Returns the tokenizer's model inputs, `lengths` (tokens of each choice), `labels` and `truncated`. A text is the
    pair (question, choice), or (context, question + choice). Too long a pair loses the end of its longer side.
    where: the name of the data in error messages.
    """
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        pairs = [
            (context, f"{question} {choice}") if context else (question, choice)
            for context, question, choices in zip(batch["context"], batch["question"], batch["choices"], strict=True)
            for choice in choices
        ]
        firsts, seconds = ([pair[side] for pair in pairs] for side in (0, 1))
        whole = tokenizer(firsts, seconds, **TEXT)["input_ids"]
        encoded = tokenizer(firsts, seconds, truncation=True, max_length=max_length, **TEXT)
        ends = np.cumsum([len(choices) for choices in batch["choices"]])
        rows: dict[str, list] = {name: [] for name in (*names, "lengths", "labels", "truncated")}
        for end, choices, label in zip(ends.tolist(), batch["choices"], batch["labels"], strict=True):
            own = range(end - len(choices), end)
            for name in names:
                rows[name].append([number for text in own for number in encoded[name][text]])
            rows["lengths"].append([len(encoded["input_ids"][text]) for text in own])
            rows["labels"].append(label)
            rows["truncated"].append(any(len(whole[text]) > max_length for text in own))
        return rows

    features = Features(dict.fromkeys(names, IDS))
    features |= {"lengths": IDS, "labels": Value("int64"), "truncated": Value("bool")}
    key = ("choices", max_length)
    return map_rows(dataset, tokenize, Features(features), tokenizer, key, num_proc, f"tokenize {where}")


def tokenize_continuations(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int, prompt: str | None = None,
    separator: str = " ", num_proc: int | None = None, where: str = "data",
) -> Dataset:  # fmt: skip
    """Tokenize rows of `read_choices` for a decoder that continues the question with each choice.

    Returns `input_ids` (the prompt), `choices` (the tokens of all choices, one after the other), `lengths` (tokens of
    each), `sizes` (their bytes), `labels` and `truncated`. prompt: a text with {context} and {question}; by default
    both, with a line break between. A row of more than `max_length` tokens loses the beginning of its prompt.

    Prompt and choice are tokenized as one text. What the prompt and all these texts have in common is the prompt; the
    rest is the choice. Tokenized alone, a choice would begin with other tokens, for example with Llama 2's tokenizer.

    Raises UserError for a choice that leaves no room for a prompt.
    """
    start, _ = special_tokens_around(tokenizer)
    start = start or [tokenizer.eos_token_id]  # a decoder needs something to read before the first token

    def written(context: str, question: str) -> str:
        if prompt is None:
            return f"{context}\n{question}" if context else question
        return question.join(part.replace("{context}", context) for part in prompt.split("{question}"))

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        rows: dict[str, list] = {name: [] for name in features}
        columns = (batch[name] for name in ("context", "question", "choices", "labels"))
        for context, question, choices, label in zip(*columns, strict=True):
            text = written(context, question)
            ids, *wholes = tokenizer([text, *(text + separator + choice for choice in choices)], **PLAIN)["input_ids"]
            shared = min(_shared(ids, whole) for whole in wholes)
            ids, parts = ids[:shared], [whole[shared:] for whole in wholes]
            room = max_length - max(map(len, parts)) - len(start) + 1  # the last token of a choice is not read
            if room < 1:
                raise UserError(
                    f"{where}: a choice has {max(map(len, parts))} tokens, which leaves no room for a question; raise "
                    f"data.max_length {max_length}"
                )
            rows["input_ids"].append([*start, *ids[-room:]])
            rows["choices"].append([number for part in parts for number in part])
            rows["lengths"].append([len(part) for part in parts])
            rows["sizes"].append([len(choice.encode()) for choice in choices])
            rows["labels"].append(label)
            rows["truncated"].append(len(ids) > room)
        return rows

    features = Features(dict.fromkeys(("input_ids", "choices", "lengths", "sizes"), IDS))
    features |= {"labels": Value("int64"), "truncated": Value("bool")}
    features = Features(features)
    key = ("continuations of whole texts", max_length, prompt, separator, start)
    return map_rows(dataset, tokenize, features, tokenizer, key, num_proc, f"tokenize {where}")


def _shared(ids: list[int], whole: list[int]) -> int:
    """Return how many tokens a prompt and the whole text have in common; at least one token of the text is left."""
    most = min(len(ids), len(whole) - 1)
    return next((place for place in range(most) if ids[place] != whole[place]), max(most, 0))


def parts_of(values: Any, lengths: list[int]) -> Iterator[Any]:
    """Yield consecutive parts of a list."""
    end = 0
    for length in lengths:
        end += length
        yield values[end - length : end]


@dataclass
class ChoiceCollator(ClassificationCollator):
    """Pad the texts of all choices of all rows to the longest."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return model inputs (texts, length), `num_choices` and `labels`, (batch,) each."""
        names = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        texts = [
            dict(zip(names, parts, strict=True)) | {"labels": 0}
            for row in rows
            for parts in zip(*(parts_of(row[name], row["lengths"]) for name in names), strict=True)
        ]
        counts = {"num_choices": torch.tensor([len(row["lengths"]) for row in rows])}
        return super().__call__(texts) | counts | {"labels": torch.tensor([row["labels"] for row in rows])}


@dataclass
class RightContinuation(PromptCompletion):
    """Predict the right choice from its prompt, over rows of `tokenize_continuations`."""

    def pair(self, row: dict):
        right = list(parts_of(row["choices"], row["lengths"]))[row["labels"]]
        return super().pair({"input_ids": row["input_ids"], "labels": right})


@dataclass
class EveryContinuation(PromptCompletion):
    """Score every choice behind its prompt, over rows of `tokenize_continuations`."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels`, (texts, length) each, and `num_choices`, (batch,)."""
        texts = [
            {"input_ids": row["input_ids"], "labels": part}
            for row in rows
            for part in parts_of(row["choices"], row["lengths"])
        ]
        return super().__call__(texts) | {"num_choices": torch.tensor([len(row["lengths"]) for row in rows])}


def right_lengths(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that `RightContinuation` reads of each row, (rows,), and zeros."""
    prompts = rows.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"].combine_chunks().value_lengths()
    right = [lengths[label] for lengths, label in zip(rows["lengths"][:], rows["labels"][:], strict=True)]
    return prompts.to_numpy() + np.array(right, dtype=np.int64) - 1, np.zeros(len(rows), dtype=np.int64)


def continuation_lengths(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that `EveryContinuation` reads of each row, (rows,), and zeros."""
    columns = rows.select_columns(["input_ids", "lengths"]).with_format("arrow")[:]
    prompts, counts = (columns[name].combine_chunks().value_lengths().to_numpy() for name in ("input_ids", "lengths"))
    lengths = np.array([sum(each) for each in columns["lengths"].to_pylist()], dtype=np.int64)
    return prompts * counts + lengths, np.zeros(len(rows), dtype=np.int64)
