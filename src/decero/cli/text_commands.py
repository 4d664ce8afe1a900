"""The commands that read text and write text: translate, summarize, generate, fill, classify. A line in, a line out."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from decero.errors import UserError


def add_translate(commands) -> None:
    """decero translate MODEL [TEXT|FILE|-]"""
    parser = _parser(commands, "translate", "each line in another language, by an encoder-decoder")
    _writes(parser)


def add_summarize(commands) -> None:
    """decero summarize MODEL [TEXT|FILE|-]"""
    _writes(_parser(commands, "summarize", "each line in short, by an encoder-decoder"))


def add_generate(commands) -> None:
    """decero generate MODEL [TEXT|FILE|-]"""
    parser = _parser(commands, "generate", "how each line goes on, by a causal language model")
    _writes(parser)
    parser.add_argument("--chat", action="store_true", help="ask each line as the tokenizer's chat template has it")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="draw tokens, logits divided by T; 1 is as learnt"
    )
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold P together")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of what is drawn, 0 unless given; the same, the same answer"
    )


def add_fill(commands) -> None:
    """decero fill MODEL [TEXT|FILE|-]"""
    parser = _parser(commands, "fill", "each line with its [MASK] filled, by a masked language model")
    parser.add_argument("--top-k", type=_positive, default=5, metavar="N", help="candidates a hole, with --jsonl")


def add_classify(commands) -> None:
    """decero classify MODEL [TEXT|FILE|-]"""
    _parser(commands, "classify", "the label of each line and its probability, by a fine-tuned classifier")


def _parser(commands, name: str, what: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="a folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument(
        "text", nargs="?", default="-", metavar="TEXT|FILE|-", help="a text, a file of lines, or - for standard input"
    )
    parser.add_argument("--jsonl", action="store_true", help="a JSON object a line, with all that was found")
    parser.add_argument("--batch-tokens", type=_positive, default=8192, metavar="N", help="tokens a batch, at most")
    if name != "generate":
        parser.add_argument(
            "--too-long", choices=("split", "cut"), default="cut" if name == "summarize" else "split",
            help="a line longer than the model reads: in parts, or as far as it goes (default: %(default)s)",
        )  # fmt: skip
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16: faster, and other in rare words")
    parser.add_argument("--revision", metavar="COMMIT", help="of a model on the hub")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python that comes with the model; needs --revision"
    )
    parser.set_defaults(function=_run)
    return parser


def _writes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beams", type=_positive, metavar="N", help="beams; the model's own number unless given")
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N", help="tokens a line; the model's own, or 256")
    parser.add_argument("--prefix", metavar="TEXT", help="put before each line; the checkpoint's own unless given")


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is no number from 1 on")
    return int(word)


def _run(arguments: argparse.Namespace) -> None:
    from decero import inference  # after --help and mistakes, which need no libraries

    command = arguments.command
    loading = {name: getattr(arguments, name) for name in ("revision", "trust_remote_code", "bf16")}
    loaded = inference.load(arguments.model, command, **loading)
    options = {"batch_tokens": arguments.batch_tokens}
    for name in ("beams", "max_new_tokens", "prefix", "top_k", "too_long", "chat", "temperature", "top_p", "seed"):
        if hasattr(arguments, name):
            options[name] = getattr(arguments, name)
    lines, total = read_lines(arguments.text)
    asked = arguments.text == "-" and sys.stdin.isatty()  # somebody types and waits for each answer
    bar = tqdm(total=total, unit="line", file=sys.stderr, dynamic_ncols=True, disable=asked or not sys.stderr.isatty())
    options |= {"warn": lambda said: bar.write(f"warning: {said}", file=sys.stderr), "first_window": 1 if asked else 32}
    texts: list[str] = []  # read, and not answered yet

    def kept() -> Iterator[str]:
        for line in lines:
            texts.append(line)
            yield line

    say = SAY[command][arguments.jsonl]
    try:
        with bar:
            for answer in getattr(inference, command)(loaded, kept(), **options):
                print(say(texts.pop(0), answer), flush=True)
                bar.update()
    except BrokenPipeError:  # who read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_lines(text: str) -> tuple[Iterable[str], int | None]:
    """The lines of a text, a file, a named pipe or standard input (`-`), without their ends; how many, where known.

    Raises UserError for a file that cannot be read and, when it comes to it, for a line that is not UTF-8.
    """
    if text == "-":
        return _decoded(sys.stdin.buffer, "standard input"), None
    try:
        is_text = not Path(text).exists() or Path(text).is_dir()
    except (OSError, ValueError):  # too long for a name, or with a zero in it
        is_text = True
    if is_text:
        lines = text.split("\n")
        return lines, len(lines)
    try:
        total = None
        if Path(text).is_file():  # a pipe is read once
            with open(text, "rb") as file:
                total = sum(1 for _ in file)
        return _decoded(open(text, "rb"), text), total
    except OSError as error:
        raise UserError(f"{text}: cannot be read: {error.strerror}") from error


def _decoded(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number} is not UTF-8; convert it with iconv") from None


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _json(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _label(text: str, found: dict[str, float]) -> str:
    """`sport` and its probability, a tab between them."""
    return "\t".join(f"{name}\t{value:.4f}" for name, value in list(found.items())[:1])


def _written(text: str, answer: str) -> str:
    return _json(text=text, output=answer)


def _holes(text: str, filled: Any) -> str:
    holes = [[{"token": token, "probability": p} for token, p in hole] for hole in filled.holes]
    return _json(text=text, output=filled.text, holes=holes)


WRITES: tuple[Callable, Callable] = (lambda text, answer: _one_line(answer), _written)
# command -> what is printed of a text and its answer: as text, as JSON
SAY: dict[str, tuple[Callable, Callable]] = {
    "translate": WRITES,
    "summarize": WRITES,
    "generate": WRITES,
    "fill": (lambda text, filled: _one_line(filled.text), _holes),
    "classify": (_label, lambda text, found: _json(text=text, labels=found)),
}
COMMANDS = (add_translate, add_summarize, add_generate, add_fill, add_classify)
