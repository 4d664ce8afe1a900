"""Add the command chat: talk with a model in a terminal, or a line a turn through a pipe."""

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from decero.cli.answer_lines import one_line
from decero.cli.text_commands import draws, loading_of, loads, positive
from decero.cli.text_lines import read_lines
from decero.errors import UserError, did_you_mean

HELP = """\
/reset      begin a new dialogue; the system message stays
/undo       forget the last question and its answer
/save FILE  append the dialogue to FILE, as a line of JSON that data.tasks.NAME.messages_column reads
/help       show this
/exit       leave, as Ctrl-D does
//TEXT      say /TEXT
Ctrl-C stops an answer; the written part stays in the dialogue."""
COMMANDS = ("/reset", "/undo", "/save", "/help", "/exit")


def add_chat(commands) -> None:
    """Add `decero chat MODEL`."""
    parser = commands.add_parser(
        "chat", help="talk with a causal language model that has a chat template", allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument("--system", metavar="TEXT", help="system message, before the first turn")
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="most new tokens per answer (default: that of the model, else 256)",
    )
    draws(parser)
    loads(parser)
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    from decero import inference  # imported late, so that --help and mistakes answer fast
    from decero.execution.threads import set_threads
    from decero.execution.weight_layout import prepacked_weights

    set_threads()
    loaded = inference.load(arguments.model, "generate", **loading_of(arguments))
    options = {name: getattr(arguments, name) for name in ("system", "max_new_tokens", "temperature", "top_p", "seed")}
    conversation = inference.Conversation(loaded, **options, warn=lambda line: _tell(f"warning: {line}"))
    try:
        with prepacked_weights(loaded.model):
            if sys.stdin.isatty():
                _tell("/help shows the commands, /exit leaves")
                _talk(conversation, _typed(), _streamed, _tell)
            else:
                _talk(conversation, read_lines("-")[0], _printed, _refuse)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _talk(
    conversation: Any, lines: Iterable[str], answer: Callable[[Any, str], None], complain: Callable[[str], Any]
) -> None:
    """Answer each line, or do its command. A line `//text` says `/text`. complain: called with what cannot be done."""
    for line in lines:
        text = line.strip()
        try:
            if _is_command(text):
                if not _command(conversation, *text.split(maxsplit=1)):
                    return
            elif text:
                answer(conversation, text.removeprefix("/") if text.startswith("//") else text)
        except UserError as error:
            complain(str(error))


def _is_command(text: str) -> bool:
    """Tell whether a line is a command, or nearly one. `/usr/bin is what?` is a question."""
    name = text.split(maxsplit=1)[0] if text.strip() else ""
    alone = name == text or bool(did_you_mean(name, COMMANDS))
    return name in COMMANDS or (re.fullmatch(r"/[a-z]+", name) is not None and alone)


def _command(conversation: Any, name: str, argument: str = "") -> bool:
    """Run a command; return whether the talk goes on. Raises UserError for an unknown one, or one without effect."""
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}{did_you_mean(name, COMMANDS) or '; /help shows all'}")
    if name == "/reset":
        conversation.reset()
        _tell("a new dialogue")
    elif name == "/undo":
        if not conversation.undo():
            raise UserError("/undo: nothing was said yet")
        _tell("the last question and its answer are forgotten")
    elif name == "/save":
        if not argument or len(conversation.messages) < 2:
            raise UserError(
                "/save: nothing was said yet" if argument else "/save: give a file, such as /save talk.jsonl"
            )
        try:
            with open(argument, "a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": conversation.messages}, ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            raise UserError(f"/save: {argument}: cannot write this file: {error}") from error
        _tell(f"{argument}: {len(conversation.messages)} messages")
    elif name == "/help":
        _tell(HELP)
    return name != "/exit"


def _typed() -> Iterator[str]:
    """Yield the lines that somebody types, until Ctrl-D."""
    import readline  # noqa: F401 (gives `input` a history and keys for editing)

    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            _tell("\n/exit leaves")
        except EOFError:
            print()
            return


def _streamed(conversation: Any, text: str) -> None:
    """Print an answer while it is written; Ctrl-C stops it."""
    with _interruptible() as pressed:
        conversation.ask(text, lambda piece: print(piece, end="", flush=True), lambda: bool(pressed))
    print(" [stopped]" if pressed else "")


def _printed(conversation: Any, text: str) -> None:
    print(one_line(conversation.ask(text)), flush=True)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising KeyboardInterrupt, which could leave the cache with half a token."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refuse(line: str) -> None:
    raise UserError(line)
