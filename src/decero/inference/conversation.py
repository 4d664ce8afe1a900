"""Talk with a causal model, turn by turn; what it has read stays in its cache."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache

from decero.data.dialogue_rows import DialogueEncoder
from decero.data.messages import Message, without_oldest
from decero.errors import UserError
from decero.execution.transformers_internals import NAMES, generate_with, handed_cache, holds_rows, remembers_keys
from decero.inference.chunking import Warn
from decero.inference.decode import generation_config_of, picker, quiet
from decero.inference.decoding_loop import GrowingLayer, decode_rows, end_tokens
from decero.inference.decoding_plan import MAX_NEW_TOKENS, limits_of
from decero.inference.generation import silent
from decero.inference.generation_check import check_generation
from decero.inference.loading import Loaded
from decero.inference.sampling import Sampling

FIX = "use decero generate, or another model"


class Conversation:
    """Hold a dialogue and its cache: the keys and values of the tokens read so far.

    messages: all of the dialogue. first: the first message that the model still reads, besides the system's.

    Each turn renders the whole dialogue with the chat template. The model reads only what follows the part that the
    cache holds already, so a template that rewrites earlier turns costs time, but gives the same answer.
    """

    def __init__(
        self, loaded: Loaded, *, system: str | None = None, max_new_tokens: int | None = None,
        temperature: float | None = None, top_p: float | None = None, seed: int | None = None, warn: Warn = silent,
    ):  # fmt: skip
        """Begin a dialogue. Options are those of `generate`; a draw depends only on the seed and on the turn.

        Raises UserError for a tokenizer without a chat template, or with one that writes no end of a turn; for a model
        whose cache holds no keys and values; for a temperature, top_p or seed out of range, or without effect.
        """
        if loaded.tokenizer.chat_template is None:
            raise UserError(
                f"{loaded.name}: the tokenizer has no chat template; fine-tune on dialogues with "
                "objective.chat_template=chatml, or use decero generate"
            )
        if not (holds_rows(loaded.model) and remembers_keys(loaded.model)):
            raise UserError(f"{loaded.name}: its cache does not hold keys and values; use decero generate --chat")
        drawing = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
        if seed is not None and (seed < 0 or not drawing):
            wrong = "is negative; use 0 or more" if seed < 0 else "has no effect without --temperature or --top-p"
            raise UserError(f"seed {seed} {wrong}")
        self.loaded, self.max_new_tokens, self.warn, self.seed = loaded, max_new_tokens, warn, seed or 0
        self.sampling = Sampling((), **drawing) if drawing else None  # type: ignore[arg-type]
        self.encoder = DialogueEncoder(loaded.tokenizer, FIX)
        ends = end_tokens(loaded.model.generation_config.eos_token_id)  # type: ignore[union-attr]
        stops = {"eos_token_id": list(dict.fromkeys([self.encoder.end, *ends]))}
        self.config = generation_config_of(loaded.model, num_beams=1, settings=stops)
        self.system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.reset()
        if self.system:
            self.encoder.prompt([*self.system, {"role": "user", "content": "a"}])  # templates may refuse the role
        if not loaded.generation_checked:
            loaded.generation_checked = True
            if problem := check_generation(loaded.model):
                warn(problem)

    def reset(self) -> None:
        """Begin anew; the system's message stays."""
        self.messages: list[Message] = list(self.system)
        self.first = len(self.system)
        self.cache: Cache | None = None
        self.read: list[int] = []  # what the cache holds

    def undo(self) -> bool:
        """Forget the last question and its answer. Return whether there was one."""
        if len(self.messages) < len(self.system) + 2:
            return False
        del self.messages[-2:]
        if self.first >= len(self.messages):
            self.first = len(self.system)
        return True

    def ask(self, text: str, say: Callable[[str], Any] = silent, stop: Callable[[], bool] = lambda: False) -> str:
        """Return the model's answer. say: called with each new piece of it. stop: asked before each token.

        An answer that is stopped stays in the dialogue as far as it was written.

        Raises UserError for a text that does not fit the model, and as `decode` does; the dialogue is then as before.
        """
        prompt = self._prompt({"role": "user", "content": text})
        limit = limits_of(self.loaded.model, [prompt], self.max_new_tokens)[0]
        heard = _Heard(self.loaded.tokenizer, say, stop)
        try:
            ids = self._write(prompt, limit, heard)
        except BaseException:
            self.cache, self.read = None, []  # it may hold half a token
            raise
        answer = heard.finish(ids)
        if not stop() and ids and ids[-1] not in self.config.eos_token_id:
            self.warn(f"the answer was cut off at {len(ids)} new tokens; raise --max-new-tokens")
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return answer

    def _prompt(self, question: Message) -> list[int]:
        """Return the ids of the dialogue. If they do not fit, leave out the oldest turns, down to half of the room."""
        messages = [*self.system, *self.messages[self.first :], question]
        ids, room, own = self.encoder.prompt(messages), self.loaded.positions(), self.loaded.model.generation_config
        if room is None:
            return ids
        reserve = self.max_new_tokens or min(own.max_new_tokens or MAX_NEW_TOKENS, max(1, room // 2))  # type: ignore
        most, dropped = room - reserve, 0
        if len(ids) <= most:
            return ids
        while len(ids) > most // 2 and (shorter := without_oldest(messages)) is not None:
            dropped += len(messages) - len(shorter)
            messages = shorter
            ids = self.encoder.prompt(messages)
        if len(ids) > most:
            raise UserError(
                f"{self.loaded.name}: this turn has {len(ids)} tokens, and the model reads {max(most, 0)} before an "
                f"answer of {reserve}; shorten it, or lower --max-new-tokens"
            )
        self.first += dropped
        unread = self.first - len(self.system)
        self.warn(f"the context of {room} tokens is full: the model no longer reads the oldest {unread} turns")
        return ids

    def _write(self, prompt: list[int], limit: int, heard: "_Heard") -> list[int]:
        """Write an answer to the prompt, reading only what the cache does not hold."""
        model, written = self.loaded.model, list[list[int]]([[]])
        self._keep(_common(self.read, prompt[:-1]))  # the last token is read again, for its logits
        turn = sum(message["role"] == "user" for message in self.messages) + 1
        sampling = self.sampling and replace(self.sampling, seeds=[(self.seed, turn)])
        pick = picker(sampling, [0], [limit])

        def loop(model: Any, input_ids: torch.Tensor, **state: Any) -> torch.Tensor:
            if self.cache is not None:
                state |= {name: self.cache for name in NAMES if state.get(name) is not None}
            self.cache = handed_cache(state)
            return decode_rows(model, input_ids, **state, limits=[limit], written=written, pick=pick, said=heard)

        ids = torch.tensor([prompt], device=model.device)
        with torch.no_grad(), quiet():
            generate_with(
                model, loop, input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=self.config,
                max_new_tokens=limit,
            )  # fmt: skip
        assert self.cache is not None
        self.read = (prompt + written[0])[: self.cache.get_seq_length()]
        return written[0]

    def _keep(self, length: int) -> None:
        """Cut the cache to its first `length` tokens; one that cannot be cut, such as with a window, is dropped."""
        if self.cache is None or length == len(self.read):
            return
        layers = [layer for layer in self.cache.layers if isinstance(layer, GrowingLayer)]
        if not length or len(layers) < len(self.cache.layers):
            self.cache, self.read = None, []
            return
        for layer in layers:
            layer.keep(length)
        self.read = self.read[:length]


def _common(one: list[int], other: list[int]) -> int:
    """Return the length of the common beginning of two lists."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class _Heard:
    """Decode an answer while it is written, and pass on what is new of its text."""

    def __init__(self, tokenizer: Any, say: Callable[[str], Any], stop: Callable[[], bool]):
        self.tokenizer, self.say, self.stop = tokenizer, say, stop
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, token: int) -> bool:
        """Take a token; return whether the answer goes on."""
        self.ids.append(token)
        text = self._text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character
            self._show(text)
        return not self.stop()

    def finish(self, ids: list[int]) -> str:
        """Show the rest, and return the whole text."""
        self.ids = ids
        self._show(self._text())
        return self._text()

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True)).strip()

    def _show(self, text: str) -> None:
        if text.startswith(self.shown) and text != self.shown:
            self.say(text[len(self.shown) :])
            self.shown = text
