"""Dialogues in Hugging Face's conversational format: a row holds `messages`, a list of {role, content}."""

import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value

from decero.data.cache_errors import writing_cache
from decero.data.corpus import check_column
from decero.errors import UserError

Message = dict[str, str]
FIELDS = ("role", "content")


def dialogue_pairs(corpus: DatasetDict, column: str, kept: Sequence[str], where: str) -> DatasetDict:
    """Return each dialogue as a pair: `source`, what stands before its last answer, as JSON; `target`, that answer.

    column: the messages. kept: other columns to keep as they are. The number of the row is kept as `row`, from 1.
    Turns after the last answer are left out, because nothing of them is scored.

    Raises UserError: a column that holds no messages; what `check_messages` refuses, with its row.
    """
    return DatasetDict({split: _pairs(rows, column, kept, f"{where} ({split})") for split, rows in corpus.items()})


def _pairs(dataset: Dataset, column: str, kept: Sequence[str], where: str) -> Dataset:
    _check_kind(dataset, column, where)

    def split_off_answers(batch, indices):
        rows: dict[str, list] = {"source": [], "target": [], "row": []}
        for value, index in zip(batch[column], indices, strict=True):
            *before, answer = check_messages(value, f"{where}, row {index + 1}")
            rows["source"].append(json.dumps(before, ensure_ascii=False))
            rows["target"].append(answer["content"])
            rows["row"].append(index + 1)
        return rows | {name: batch[name] for name in kept}

    for name in kept:
        check_column(dataset, name, where)
    texts = {"source": Value("large_string"), "target": Value("large_string"), "row": Value("int64")}
    features = Features(texts | {name: dataset.features[name] for name in kept})
    with writing_cache():
        return dataset.map(
            split_off_answers, batched=True, with_indices=True, remove_columns=dataset.column_names, features=features,
            desc=f"read dialogues of {where}",
        )  # fmt: skip


def _check_kind(dataset: Dataset, column: str, where: str) -> None:
    setting = "messages_column"
    check_column(dataset, column, where, setting)
    kind = dataset.features[column]
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    if not isinstance(inner, dict):
        raise UserError(
            f"{where}: column {column!r} holds {getattr(kind, 'dtype', None) or type(kind).__name__}, not a list of "
            f"messages with role and content  (setting: {setting})"
        )
    if missing := [name for name in FIELDS if name not in inner]:
        raise UserError(
            f"{where}: the messages in {column!r} have the fields {', '.join(inner)}; rename one to {missing[0]}"
        )


def check_messages(value: Any, where: str) -> list[Message]:
    """Return the messages of a dialogue up to its last answer, each with `role` and `content` alone.

    Roles are left to the chat template. Raises UserError, with the turn: no messages; a role or a text that is missing;
    a field that is not read; a dialogue that begins with the assistant; two answers in a row; an answer without text;
    no answer at all, so that nothing would be scored.
    """
    if not value:
        raise UserError(f"{where}: the dialogue is empty; drop the row")
    messages: list[Message] = []
    last = None
    for number, turn in enumerate(value, start=1):
        place = f"{where}, turn {number}"
        turn = turn or {}
        for name in FIELDS:
            if not isinstance(turn.get(name), str) or (name == "role" and not turn[name]):
                held = "no text" if turn.get(name) in (None, "") else type(turn[name]).__name__
                raise UserError(f"{place}: its {name} holds {held}; give text, or drop the row")
        if more := [name for name, held in turn.items() if held is not None and name not in FIELDS]:
            raise UserError(f"{place}: its field {more[0]!r} is not read; remove it, or drop the row")
        if turn["role"] == "assistant":
            if all(message["role"] == "system" for message in messages):
                raise UserError(f"{place}: the dialogue begins with the assistant; let the user begin, or drop the row")
            if messages[-1]["role"] == "assistant":
                raise UserError(f"{place}: two turns of the assistant in a row; join them to one")
            if not turn["content"].strip():
                raise UserError(f"{place}: the assistant's turn has no text; give it text, or drop the row")
            last = number
        messages.append({name: turn[name] for name in FIELDS})
    if last is None:
        raise UserError(f"{where}: no turn is the assistant's, so nothing would be scored; drop the row")
    return messages[:last]


def without_oldest(messages: list[Message]) -> list[Message] | None:
    """Return the messages without their oldest exchange: the first turns, up to the user's next one.

    System messages at the beginning stay. None if only one exchange is there.
    """
    first = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    later = range(first + 1, len(messages))
    new = [n for n in later if messages[n]["role"] == "user" and messages[n - 1]["role"] != "user"]
    return [*messages[:first], *messages[new[0] :]] if new else None
