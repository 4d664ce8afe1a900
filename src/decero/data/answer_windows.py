"""Cut a question and its long context into windows that overlap, and keep the characters of every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from decero.data.answer_rows import NUMBERS, SOURCE, STARTS, TEXTS
from decero.data.collators import IGNORED
from decero.data.special_tokens import TEXT
from decero.data.tokenization import map_rows
from decero.data.windows import window_bounds
from decero.errors import UserError

INSIDE, START, END, BOTH = 0, 1, 2, 3  # labels of tokens; BOTH: the answer is one token, or there is none
NoAnswerToken = Literal["first", "last"]


class Layout(NamedTuple):
    """The special tokens of a pair, and the segment of each part: before, question, between, context, after."""

    before: list[int]
    between: list[int]
    after: list[int]
    segments: tuple[int, int, int, int, int]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def pair_layout(tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Return how the tokenizer joins two texts.

    A tokenizer that puts nothing between them, or nothing after them (GPT-2, Llama), gets its `sep_token` there, else
    its `eos_token`. Raises UserError for one that has neither.
    """
    pair = tokenizer("a", "a")
    side = pair.sequence_ids(0)
    ids, segments = pair["input_ids"], pair.get("token_type_ids") or [0] * len(pair["input_ids"])
    first, second = side.index(0), side.index(1)
    question_end, context_end = (len(side) - side[::-1].index(part) for part in (0, 1))
    parts = {"before": ids[:first], "between": ids[question_end:second], "after": ids[context_end:]}
    end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    for name in ("between", "after"):
        if not parts[name]:
            if end is None:
                raise UserError(
                    f"tokenizer {tokenizer.name_or_path}: it has neither sep_token nor eos_token to put between "
                    "question and context; choose another"
                )
            parts[name] = [end]
    places = (0, first, min(question_end, second - 1), second, min(context_end, len(ids) - 1))
    return Layout(**parts, segments=tuple(segments[place] for place in places))  # type: ignore[arg-type]


@dataclass
class Window:
    """One window: its tokens, and which context tokens it holds.

    first: the place of its first context token. bounds: the context tokens that it holds, of all.
    offsets: the characters of all context tokens, from start to end, (tokens, 2).
    """

    input_ids: list[int]
    token_type_ids: list[int]
    first: int
    bounds: tuple[int, int]
    offsets: np.ndarray

    @property
    def characters(self) -> np.ndarray:
        """Return start and end of the characters of its context tokens, (2, context tokens)."""
        return self.offsets[slice(*self.bounds)].T


@dataclass
class Windows:
    """Cut questions and contexts into windows of at most `max_length` tokens, special tokens included.

    stride: context tokens that neighbours share. The question is whole in each window. mend: what to do where it is
    too long.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    stride: int
    mend: str = "raise data.max_length, lower data.stride, or shorten the question"

    def __post_init__(self):
        self.layout = pair_layout(self.tokenizer)

    def __call__(self, questions: Sequence[str], contexts: Sequence[str], names: Sequence[str]) -> list[list[Window]]:
        """Return the windows of each question. An empty context gives one window.

        names: of the questions, for messages. Raises UserError for a question that leaves no room for new context.
        """
        whole = {"add_special_tokens": False, "return_token_type_ids": False, "return_attention_mask": False, **TEXT}
        unique = list(dict.fromkeys(contexts))
        encoded = self.tokenizer(unique, return_offsets_mapping=True, **whole)
        of_text = {
            text: (ids, np.array(offsets, dtype=np.int32).reshape(-1, 2))
            for text, ids, offsets in zip(unique, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        }
        asked = self.tokenizer(list(questions), **whole)["input_ids"]
        return [
            self._cut(question, *of_text[context], name)
            for question, context, name in zip(asked, contexts, names, strict=True)
        ]

    def _cut(self, question: list[int], context: list[int], offsets_C2: np.ndarray, name: str) -> list[Window]:
        layout = self.layout
        room = self.max_length - layout.size - len(question)
        if room <= self.stride:
            raise UserError(
                f"{name}: the question has {len(question)} tokens; windows of {self.max_length} tokens then have "
                f"{max(0, room)} for the context, of which neighbours share {self.stride}; {self.mend}"
            )
        found = []
        for low, high in window_bounds(len(context), room, self.stride):
            parts = layout.before, question, layout.between, context[low:high], layout.after
            types = [t for t, part in zip(layout.segments, parts, strict=True) for _ in part]
            first = len(layout.before) + len(question) + len(layout.between)
            ids = [token for part in parts for token in part]
            found.append(Window(ids, types, first, (low, high), offsets_C2))
        return found


def tokens_of(starts_C: np.ndarray, ends_C: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """Return the first and last token that touch the characters from start to end; None if no token does."""
    touching = np.flatnonzero((starts_C < end) & (ends_C > start))
    return (int(touching[0]), int(touching[-1])) if len(touching) else None


def tokenize_answers(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int, question_column: str,
    context_column: str, num_proc: int | None = None, where: str = "data",
) -> Dataset:  # fmt: skip
    """Make one row of each window of each question.

    dataset: of `read_answers`. where: the name of the data in error messages.

    Returns input_ids, token_type_ids where the tokenizer has them, example (the row of the question), context_first,
    starts and ends (characters of the context tokens), and answer_first, answer_last: the tokens of the first answer
    that lies in the window; -1 where none does. answer_tokens: the length of the first answer of the question.

    Raises UserError for a question that leaves no room for its context.
    """
    windows = Windows(tokenizer, max_length, stride)
    segments = "token_type_ids" in tokenizer.model_input_names
    lists = {name: List(Value("int32")) for name in ("input_ids", "starts", "ends")}
    lists |= {"token_type_ids": List(Value("int32"))} if segments else {}
    numbers = ("example", "context_first", "answer_first", "answer_last", "answer_tokens")
    features = Features(lists | {name: Value("int32") for name in numbers})

    def cut(batch: dict[str, list]) -> dict[str, list]:
        names = [f"{where}, row {number}" for number in batch[SOURCE]]
        rows: dict[str, list[Any]] = {name: [] for name in features}
        every = windows(batch[question_column], batch[context_column], names)
        for number, found, texts, starts in zip(batch[NUMBERS], every, batch[TEXTS], batch[STARTS], strict=True):
            spans = [(start, start + len(text)) for start, text in zip(starts, texts, strict=True)]
            first_C, end_C = found[0].offsets.T
            answers = [tokens for a, b in spans if (tokens := tokens_of(first_C, end_C, a, b)) is not None]
            for window in found:
                low, high = window.bounds
                inside = [(a - low, b - low) for a, b in answers if low <= a and b < high]
                first, last = (window.first + place for place in inside[0]) if inside else (-1, -1)
                row = {"input_ids": window.input_ids, "token_type_ids": window.token_type_ids, "example": number}
                row |= dict(zip(("starts", "ends"), window.characters, strict=True))
                row |= {"context_first": window.first, "answer_first": first, "answer_last": last}
                row |= {"answer_tokens": answers[0][1] - answers[0][0] + 1 if answers else 0}
                for name in features:
                    rows[name].append(row[name])
        return rows

    key = ("answers", max_length, stride, question_column, context_column)
    return map_rows(dataset, cut, features, tokenizer, key, num_proc, f"tokenize {where}")


@dataclass
class AnswerCollator:
    """Pad windows to the longest of the batch, on the right, and label the tokens of the answer.

    segments: whether the model reads token_type_ids. no_answer: the token that stands for "no answer here".
    """

    tokenizer: PreTrainedTokenizerBase
    segments: bool = True
    no_answer: NoAnswerToken = "first"

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return input_ids, attention_mask, token_type_ids and labels, (batch, length) each.

        rows: of `tokenize_answers`. labels: START, END or BOTH at the tokens of the answer, INSIDE at others, -100 at
        padding. A window without its answer has BOTH at the token for no answer.
        """
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        fills = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        fills |= {"token_type_ids": 0} if self.segments and "token_type_ids" in rows[0] else {}
        batch = {name: np.full(shape, fill, dtype=np.int64) for name, fill in fills.items()}
        for b, row in enumerate(rows):
            size = len(row["input_ids"])
            for name in ("input_ids", "token_type_ids"):
                if name in batch:
                    batch[name][b, :size] = row[name]
            batch["attention_mask"][b, :size] = 1
            batch["labels"][b, :size] = INSIDE
            first, last = row.get("answer_first", -1), row.get("answer_last", -1)
            if first < 0:
                first = last = 0 if self.no_answer == "first" else size - 1
            batch["labels"][b, first] += START
            batch["labels"][b, last] += END
        return {name: torch.from_numpy(array) for name, array in batch.items()}
