"""Render chat templates of tokenizers: programs of strangers, which may fail, loop, or write without end."""

import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
from transformers import PreTrainedTokenizerBase

from decero.errors import UserError

SECONDS = 10.0  # a real template takes less than a millisecond
MEMORY = 2**30  # bytes that a template may use while it runs
CHARACTERS = 1_000_000  # that it may write, besides ten times the messages


def render_chat(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], fix: str) -> str:
    """Return the text of a chat, up to where the model's answer begins unless the last turn is the model's.

    turns: messages with `role` and `content`. fix: what to do instead, for error messages.
    Tokenize the text without special tokens, because the template writes them: `apply_chat_template` does so, too.

    Raises UserError if the template fails, takes longer than SECONDS, uses more than MEMORY, or writes more than
    CHARACTERS.
    """
    problem = None
    try:
        with _limited(SECONDS, MEMORY):
            text = tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=turns[-1]["role"] != "assistant"
            )
    except _TookTooLong:
        problem = f"its chat template does not end within {SECONDS:g} s"
    except MemoryError:
        problem = f"its chat template needs more than {MEMORY / 2**30:g} GiB of memory"
    except RecursionError:
        problem = "its chat template fails (it calls itself without end)"
    except Exception as error:  # a template may raise anything
        problem = f"its chat template fails ({' '.join(str(error).split()) or type(error).__name__})"
    else:
        most = CHARACTERS + 10 * sum(len(turn["content"]) for turn in turns)
        if not isinstance(text, str):
            problem = f"its chat template gives a {type(text).__name__}, not a text"
        elif len(text) > most:
            problem = f"its chat template writes {len(text):,} characters"
    if problem:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: {problem}; {fix}")
    return str(text)


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
