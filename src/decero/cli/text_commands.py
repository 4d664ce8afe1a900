"""Add the commands translate, summarize, generate, fill, classify: a line in, a line out."""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from decero.cli.answer_lines import TO_LINE
from decero.cli.text_lines import read_lines
from decero.errors import UserError


def add_translate(commands) -> None:
    """Add `decero translate MODEL [TEXT|FILE|-]`."""
    parser = line_parser(commands, "translate", "translate each line with an encoder-decoder")
    _writes(parser)
    _speaks(parser)


def add_summarize(commands) -> None:
    """Add `decero summarize MODEL [TEXT|FILE|-]`."""
    what = "summarize each line with an encoder-decoder, or by its best sentences"
    parser = line_parser(commands, "summarize", what)
    _writes(parser)
    _speaks(parser)


def add_generate(commands) -> None:
    """Add `decero generate MODEL [TEXT|FILE|-]`."""
    parser = line_parser(commands, "generate", "continue each line with a causal language model")
    _writes(parser)
    parser.add_argument(
        "--chat", action="store_true", help="write each line as a user turn with the tokenizer's chat template"
    )
    draws(parser)


def draws(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling."""
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="sample tokens with logits divided by T; 1 leaves them unchanged"
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the likeliest tokens with probability P in sum"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling (default: 0)")


def add_fill(commands) -> None:
    """Add `decero fill MODEL [TEXT|FILE|-]`."""
    parser = line_parser(commands, "fill", "fill each [MASK] with a masked language model")
    parser.add_argument(
        "--top-k", type=positive, default=5, metavar="N", help="with --jsonl: candidates per hole (default: 5)"
    )


def add_classify(commands) -> argparse.ArgumentParser:
    """Add `decero classify MODEL [TEXT|FILE|-]`."""
    what = "label each line, or each picture, with a fine-tuned classifier, or give the value of a regression"
    parser = line_parser(commands, "classify", what)
    parser.add_argument(
        "--pair", action="store_true",
        help="read two texts a line, with a tab between them (default for a model that was fine-tuned on pairs)",
    )  # fmt: skip
    parser.add_argument("--column", metavar="NAME", help="read FILE as a table: the column with the texts")
    parser.add_argument("--pair-column", metavar="NAME", help="the column with the second texts, for pairs")
    parser.add_argument("--label-column", metavar="NAME", help="score the rows: the column with the right labels")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write the rows with predictions and probabilities: csv, tsv, jsonl or parquet, by the ending",
    )  # fmt: skip
    return parser


def line_parser(commands, name: str, what: str) -> argparse.ArgumentParser:
    """Add a command that reads lines. One that is not in TO_LINE has its own `to_line` among the parser's defaults."""
    parser = commands.add_parser(name, help=what, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument(
        "text",
        nargs="?",
        default="-",
        metavar="TEXT|FILE|-",
        help="text, file of lines, or - for standard input (default)",
    )
    parser.add_argument("--jsonl", action="store_true", help="print one JSON object per line, with all results")
    parser.add_argument(
        "--batch-tokens", type=positive, default=8192, metavar="N", help="most tokens per batch (default: 8192)"
    )
    if name not in ("generate", "extract", "score"):
        parser.add_argument(
            "--too-long", choices=("split", "cut"), default="cut" if name == "summarize" else "split",
            help="split or cut lines longer than the model's limit (default: %(default)s)",
        )  # fmt: skip
    loads(parser)
    parser.set_defaults(function=run_lines)
    return parser


def loads(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a model is loaded; `loading_of` reads them."""
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16: faster, but a few words may differ")
    may_run_code(parser)


def may_run_code(parser: argparse.ArgumentParser) -> None:
    """Add the options that pin a model on the hub and allow its Python code."""
    parser.add_argument("--revision", metavar="COMMIT", help="commit of a model on the hub")
    parser.add_argument(
        "--code-revision", metavar="NAME/REPO@COMMIT", help="allow the model to take Python code from this repository"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow Python code from the model to run; needs --revision"
    )


def loading_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `inference.load` that the options of `loads` give."""
    loading = {name: getattr(arguments, name) for name in ("revision", "trust_remote_code", "bf16")}
    return loading | ({"code_revision": arguments.code_revision} if arguments.code_revision else {})


def _writes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beams", type=positive, metavar="N", help="number of beams (default: that of the model)")
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="most new tokens per line (default: that of the model, else 256)",
    )
    parser.add_argument(
        "--prefix", metavar="TEXT", help="text to put before each line (default: that of the checkpoint)"
    )


def _speaks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source-lang", metavar="CODE",
        help="language of the lines, for multilingual models, e.g. eng_Latn or en_XX (default: that of the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--target-lang", metavar="CODE",
        help="language of the answers, e.g. fra_Latn or fr_XX; multilingual Marian needs only this one, e.g. fra",
    )  # fmt: skip


def positive(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) > 0):
        raise argparse.ArgumentTypeError(f"{word[:40]} is not a whole number above 0")
    return int(word)


def run_lines(arguments: argparse.Namespace) -> None:
    """Answer each line of a text or file."""
    from decero import inference  # imported late, so that --help and mistakes answer fast
    from decero.execution.threads import set_threads

    set_threads()
    command = arguments.command
    loaded = inference.load(arguments.model, command, **loading_of(arguments))
    options = {"batch_tokens": arguments.batch_tokens}
    names = ("beams", "max_new_tokens", "prefix", "source_lang", "target_lang", "top_k", "too_long", "chat", "words")
    for name in (*names, "temperature", "top_p", "seed"):
        if hasattr(arguments, name):
            options[name] = getattr(arguments, name)
    if command == "classify":
        from decero.cli.classify_table import classify_table, is_table

        table_options = (arguments.column, arguments.pair_column, arguments.label_column, arguments.out)
        pairs = arguments.pair or inference.reads_pairs(loaded)  # lines with a tab, also in a .tsv
        if any(table_options) and arguments.pair:
            raise UserError("--pair is for lines; of a table, name the column of the second texts: --pair-column NAME")
        if any(table_options) or (is_table(arguments.text) and not pairs):
            return classify_table(loaded, arguments)
    lines: Iterable[Any]
    lines, total = read_lines(arguments.text)
    if command == "classify" and (arguments.pair or inference.reads_pairs(loaded)):
        lines = _pairs(lines)
    typed = arguments.text == "-" and sys.stdin.isatty()  # somebody types and waits for each answer
    bar = tqdm(total=total, unit="line", file=sys.stderr, dynamic_ncols=True, disable=typed or not sys.stderr.isatty())
    options |= {"warn": lambda line: bar.write(f"warning: {line}", file=sys.stderr), "first_window": 1 if typed else 32}
    texts: list[Any] = []  # read but not answered yet

    def remembered() -> Iterator[Any]:
        for line in lines:
            texts.append(line)
            yield line

    to_line = (TO_LINE.get(command) or arguments.to_line)[arguments.jsonl]
    try:
        with bar:
            for answer in getattr(inference, command)(loaded, remembered(), **options):
                print(to_line(texts.pop(0), answer), flush=True)
                bar.update()
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _pairs(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Split each line at its tab. Raises UserError for a line with no tab, or with several."""
    for number, line in enumerate(lines, start=1):
        texts = line.split("\t") if line.strip() else ["", ""]
        if len(texts) != 2:
            found = "no tab" if len(texts) == 1 else f"{len(texts) - 1} tabs"
            raise UserError(f"line {number}: {found}; the model reads pairs: give two texts with one tab between them")
        yield texts[0], texts[1]


COMMANDS = (add_translate, add_summarize, add_generate, add_fill)
