"""Ids of dialogues: the tokenizer's chat template writes them, and only the assistant's turns are scored."""

import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from transformers import PreTrainedTokenizerBase

from decero.data.chat_template import render_chat, render_chats
from decero.data.messages import Message, without_oldest
from decero.data.special_tokens import TEXT
from decero.data.tokenization import map_rows
from decero.errors import UserError

CHATML_FIX = "set objective.chat_template=chatml"
PROBE = "\N{OBJECT REPLACEMENT CHARACTER}"
TAGS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Encoded(NamedTuple):
    """The ids of a dialogue up to the last one that is scored; `scored`: one truth value an id.

    prompt: the number of ids before the last answer.
    """

    ids: list[int]
    scored: list[bool]
    prompt: int


class DialogueEncoder:
    """Encode dialogues with a chat template. fix: what to do with a template that cannot be used.

    end: the id that ends a turn of the assistant.

    A special token that is spelt out in a message is text. Templates have limits of time and memory.
    Raises UserError for a template that fails, or that writes no special token after an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fix: str = CHATML_FIX):
        self.tokenizer, self.fix = tokenizer, fix
        self.tagged = isinstance(tokenizer.chat_template, str) and bool(TAGS.search(tokenizer.chat_template))
        self.special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special |= set(tokenizer.all_special_tokens)
        end = turn_end(tokenizer, fix)
        if end is None:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path}: its chat template writes no special token after an answer, so a "
                f"model would not learn to stop; {fix}"
            )
        self.end: int = end

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the messages, up to where the assistant's next turn begins."""
        marked, marks = self._marked(messages)
        return self._ids([render_chat(self.tokenizer, marked, self.fix, prompt=True)], marks)[0]

    def encode(self, messages: Sequence[Message], where: str) -> Encoded:
        """Encode a dialogue that ends with the assistant. where: its place, for error messages.

        A turn of the assistant is what follows the ids of the prompt before it, up to the id that ends it. With
        `{% generation %}` tags, the tags must mark all of this; what they mark besides, of the words of the template
        around that turn, is scored, too, as in TRL. (Tags are not consulted where a message spells out special tokens.)

        Raises UserError, with the turn: a role or a turn that the template refuses or leaves out; a prompt whose ids
        change when the answer follows; a turn that changes when others follow; a turn without end; tags that disagree.
        """
        marked, marks = self._marked(messages)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        parts = [(marked[:turn], True) for turn in turns] + [(marked[: turn + 1], False) for turn in turns]
        whole, *texts = self._render(marked, [(marked, False), *parts], where)
        self._check_all_there(marked, whole, where)
        ids, *prompts = self._ids([whole, *texts[: len(turns)]], marks)
        scored = [False] * len(ids)
        for turn, prompt, text, next_prompt in zip(
            turns, prompts, texts[len(turns) :], [*prompts[1:], ids], strict=True
        ):
            place, begin = f"{where}, turn {turn + 1}", len(prompt)
            if not prompt:
                raise UserError(f"{place}: the chat template writes nothing before this turn; {self.fix}")
            if ids[:begin] != prompt:
                raise UserError(
                    f"{place}: the tokens of its prompt change when the answer follows; remove white space at the "
                    f"beginning of the answer, or {self.fix}"
                )
            end = next((n + 1 for n in range(begin, len(next_prompt)) if ids[n] == self.end), None)
            if end is None:
                raise UserError(f"{place}: the chat template writes nothing that ends this turn; {self.fix}")
            if not whole.startswith(text) and self._ids([text], marks)[0][:end] != ids[:end]:
                raise UserError(f"{place}: the chat template changes this turn when others follow; {self.fix}")
            scored[begin:end] = [True] * (end - begin)
        if self.tagged and not marks:
            scored = self._agreed(messages, scored, turns, where)
        last = max(n for n, each in enumerate(scored) if each) + 1
        return Encoded(ids[:last], scored[:last], len(prompts[-1]))

    def _agreed(self, messages: Sequence[Message], scored: list[bool], turns: list[int], where: str) -> list[bool]:
        """Return what the template's tags mark, if that is all of `scored`, and no more than the assistant's turns."""
        found: Any = self.tokenizer.apply_chat_template(
            list(messages), return_dict=True, return_assistant_tokens_mask=True
        )
        tagged, fix = list(map(bool, found["assistant_masks"])), f"correct the tags, or {self.fix}"
        edges = [(messages[: turn + more], False) for turn in turns for more in (0, 1)]
        sizes = list(map(len, self._ids(self._render(messages, edges, where), {})))
        inside = [False] * len(tagged)
        for turn, begin, end in zip(turns, sizes[::2], sizes[1::2], strict=True):
            inside[begin:end] = tagged[begin:end]
            if missing := sum(
                one and not other for one, other in zip(scored[begin:end], tagged[begin:end], strict=True)
            ):
                raise UserError(
                    f"{where}, turn {turn + 1}: the {{% generation %}} tags of the chat template leave out {missing} "
                    f"tokens of the answer or of its end; {fix}"
                )
        if inside != tagged:
            raise UserError(
                f"{where}: the {{% generation %}} tags of the chat template mark {sum(tagged) - sum(inside)} tokens "
                f"outside of the assistant's turns; {fix}"
            )
        return tagged

    def _render(
        self, messages: Sequence[Message], chats: Sequence[tuple[Sequence[Message], bool]], where: str
    ) -> list[str]:
        """Render parts of a dialogue; an error names the first role that is not one of the usual three."""
        try:
            return render_chats(self.tokenizer, chats, self.fix)
        except UserError as error:
            usual = ("system", "user", "assistant")
            odd = [(n, message["role"]) for n, message in enumerate(messages, start=1) if message["role"] not in usual]
            place = f"{where}, turn {odd[0][0]} (role {odd[0][1]!r})" if odd else where
            raise UserError(f"{place}: {error}") from error

    def _check_all_there(self, messages: Sequence[Message], text: str, where: str) -> None:
        for turn, message in enumerate(messages, start=1):
            if message["content"].strip() not in text:
                raise UserError(
                    f"{where}, turn {turn} (role {message['role']!r}): the chat template of tokenizer "
                    f"{self.tokenizer.name_or_path} leaves out its text; {self.fix}"
                )

    def _marked(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Replace each special token that is spelt out in a message by a mark; return the messages and the marks."""
        texts = [message["content"] for message in messages]
        spelt = sorted((t for t in self.special if any(t in text for text in texts)), key=len, reverse=True)
        if not spelt:
            return list(messages), {}
        unused = (chr(code) for code in range(0xE000, 0xF900) if not any(chr(code) in text for text in texts))
        mark_of = {token: next(unused) for token in spelt}
        pattern = re.compile("|".join(map(re.escape, spelt)))
        contents = [pattern.sub(lambda match: mark_of[match[0]], text) for text in texts]
        marked = [message | {"content": content} for message, content in zip(messages, contents, strict=True)]
        return marked, {mark: token for token, mark in mark_of.items()}

    def _ids(self, texts: list[str], marks: dict[str, str]) -> list[list[int]]:
        plain: dict[str, Any] = {
            "add_special_tokens": False,
            "verbose": False,
        }  # the template writes them: no BOS twice
        if not marks:
            return self.tokenizer(texts, **plain)["input_ids"]
        ids_of = {mark: self.tokenizer(token, **(plain | TEXT))["input_ids"] for mark, token in marks.items()}
        cut = re.compile(f"([{''.join(marks)}])")
        return [
            [
                token
                for part in cut.split(text)
                if part
                for token in (ids_of[part] if part in ids_of else self.tokenizer(part, **plain)["input_ids"])
            ]
            for text in texts
        ]


def turn_end(tokenizer: PreTrainedTokenizerBase, fix: str = CHATML_FIX) -> int | None:
    """Return the first special token that the chat template writes after an answer, None if there is none."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    _, found, after = render_chat(tokenizer, turns, fix).rpartition(PROBE)
    if not found:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: its chat template leaves out the assistant's text; {fix}")
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    ids = tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]
    return next((token for token in ids if token in special), None)


def tokenize_dialogues(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_source_length: int,
    max_target_length: int,
    num_proc: int | None = None,
    where: str = "data",
) -> Dataset:
    """Tokenize each dialogue of `dialogue_pairs` to a row that `PromptCompletion` reads.

    Columns: `input_ids`, what stands before the last answer; `labels`, that answer and its end; `scored`, places of
    `input_ids` that are scored, too, as begin, end, begin, end ...; `dropped`, the number of turns left out; and
    `truncated`, whether anything was left out.

    A dialogue with more than `max_source_length` tokens before its last answer loses its oldest exchanges, as
    `without_oldest` says. A last answer over `max_target_length` loses its end.

    Raises UserError, with the row: as `DialogueEncoder`; a last exchange that does not fit by itself.
    """
    encoder = DialogueEncoder(tokenizer)

    def tokenize(batch):
        rows: dict[str, list] = {name: [] for name in features}
        for source, target, row in zip(batch["source"], batch["target"], batch["row"], strict=True):
            place = f"{where}, row {row}"
            messages = [*json.loads(source), {"role": "assistant", "content": target}]
            found, dropped = encoder.encode(messages, place), 0
            while found.prompt > max_source_length:
                shorter = without_oldest(messages)
                if shorter is None:
                    raise UserError(
                        f"{place}: what the last answer follows has {found.prompt} tokens by itself; raise "
                        f"data.max_source_length ({max_source_length}), or drop the row"
                    )
                dropped += len(messages) - len(shorter)
                messages = shorter
                found = encoder.encode(messages, place)
            answer = found.ids[found.prompt :]
            rows["input_ids"].append(found.ids[: found.prompt])
            rows["labels"].append(answer[:max_target_length])
            rows["scored"].append(_borders(found.scored[: found.prompt]))
            rows["dropped"].append(dropped)
            rows["truncated"].append(dropped > 0 or len(answer) > max_target_length)
        return rows

    ids = ListOf(Value("int32"))
    features = Features(
        {"input_ids": ids, "labels": ids, "scored": ids, "dropped": Value("int32"), "truncated": Value("bool")}
    )
    key = ("dialogues", max_source_length, max_target_length, str(tokenizer.chat_template))
    return map_rows(dataset, tokenize, features, tokenizer, key, num_proc, f"tokenize {where}")


def _borders(scored: list[bool]) -> list[int]:
    """Return where runs of true values begin and end: [begin, end, begin, end ...]."""
    at, borders = 0, []
    for value, run in groupby(scored):
        size = len(list(run))
        borders += [at, at + size] if value else []
        at += size
    return borders
