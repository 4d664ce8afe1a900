"""Render chat templates of tokenizers: programs of strangers, which may fail, loop, or write without end."""

import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from decero.errors import UserError

SECONDS = 10.0  # a real template takes less than a millisecond
MEMORY = 2**30  # bytes that a template may use while it runs
CHARACTERS = 1_000_000  # that it may write, besides ten times the messages

# Templates that a run may choose by name: objective.chat_template. ChatML has no default system prompt.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def use_chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer the ChatML template, and its two special tokens where they are missing."""
    names = ["<|im_start|>", "<|im_end|>"]
    tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)  # type: ignore[arg-type]
    tokenizer.chat_template = CHATML


def render_chat(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], fix: str, prompt: bool | None = None
) -> str:
    """Return the text of a chat, up to where the model's answer begins unless the last turn is the model's.

    turns: messages with `role` and `content`. fix: what to do instead, for error messages.
    prompt: whether the model's turn begins at the end, whoever had the last turn.
    Tokenize the text without special tokens, because the template writes them: `apply_chat_template` does so, too.

    Raises UserError if the template fails, takes longer than SECONDS, uses more than MEMORY, or writes more than
    CHARACTERS.
    """
    return render_chats(tokenizer, [(turns, turns[-1]["role"] != "assistant" if prompt is None else prompt)], fix)[0]


def render_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[tuple[Sequence[dict[str, str]], bool]], fix: str
) -> list[str]:
    """Return the texts of several chats, each (turns, prompt), as `render_chat` does; the limits are for all."""
    problem, texts = None, []
    try:
        with _limited(SECONDS, MEMORY):
            for turns, prompt in chats:
                text: Any = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt)
                texts.append(text)
    except _TookTooLong:
        problem = f"its chat template does not end within {SECONDS:g} s"
    except MemoryError:
        problem = f"its chat template needs more than {MEMORY / 2**30:g} GiB of memory"
    except RecursionError:
        problem = "its chat template fails (it calls itself without end)"
    except Exception as error:  # a template may raise anything
        problem = f"its chat template fails ({' '.join(str(error).split()) or type(error).__name__})"
    for (turns, _), text in zip(chats, texts, strict=False):
        most = CHARACTERS + 10 * sum(len(turn["content"]) for turn in turns)
        if not isinstance(text, str):
            problem = problem or f"its chat template gives a {type(text).__name__}, not a text"
        elif len(text) > most:
            problem = problem or f"its chat template writes {len(text):,} characters"
    if problem:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: {problem}; {fix}")
    return list(map(str, texts))


class _TookTooLong(BaseException):
    """Raised by the timer; no Exception, so that no handler in between takes it for an error of the template."""


@contextmanager
def _limited(seconds: float, memory: int) -> Iterator[None]:
    """Limit time and memory of the code inside. The timer needs the main thread."""
    timed = threading.current_thread() is threading.main_thread()

    def stop(*_):
        raise _TookTooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + memory
    limits_memory = soft == resource.RLIM_INFINITY or limit < soft
    previous = signal.signal(signal.SIGALRM, stop) if timed else None
    try:
        if limits_memory:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        if timed:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        if limits_memory:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
