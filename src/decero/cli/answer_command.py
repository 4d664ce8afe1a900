"""Add the command answer: find the answers to questions in one document."""

import argparse
import json
from typing import Any

from decero.cli.text_commands import loading_of, loads, positive
from decero.cli.text_lines import read_lines
from decero.errors import UserError


def add_answer(commands) -> None:
    """Add `decero answer MODEL --question Q TEXT|FILE|-`."""
    what = "find the answer to a question in a text, with probability, or say that it is not there"
    parser = commands.add_parser("answer", help=what, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument(
        "text", metavar="TEXT|FILE|-",
        help="text, file, or - for standard input; the whole of it is read as one document",
    )  # fmt: skip
    parser.add_argument(
        "--question", action="append", required=True, metavar="Q", help="the question; may be given several times"
    )
    parser.add_argument(
        "--n-best", type=positive, default=1, metavar="N", help="print the N best spans, best first (default: 1)"
    )
    parser.add_argument("--jsonl", action="store_true", help="print one JSON object per question, with all results")
    parser.add_argument(
        "--batch-tokens", type=positive, default=8192, metavar="N", help="most tokens per batch (default: 8192)"
    )
    loads(parser)
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    from decero import inference  # imported late, so that --help and mistakes answer fast
    from decero.execution.threads import set_threads

    set_threads()
    for question in arguments.question:
        if not question.strip():
            raise UserError("--question: it is empty; give a question")
    loaded = inference.load(arguments.model, "answer", **loading_of(arguments))
    context = "\n".join(read_lines(arguments.text)[0])
    pairs = [(question, context) for question in arguments.question]
    options = {"n_best": arguments.n_best, "batch_tokens": arguments.batch_tokens}
    for question, found in zip(arguments.question, inference.answer(loaded, pairs, **options), strict=True):
        lines = [_record(question, found)] if arguments.jsonl else _lines(found, arguments.n_best)
        for line in lines:
            print(line, flush=True)


def _record(question: str, found: Any) -> str:
    n_best = [dict(zip(("text", "start", "end", "score"), each, strict=True)) for each in found.n_best]
    record = {"question": question, "answer": found.text, "start": found.start, "end": found.end}
    record |= {"score": found.score, "no_answer": found.no_answer, "n_best": n_best}
    return json.dumps(record, ensure_ascii=False)


def _lines(found: Any, n_best: int) -> list[str]:
    """Write answers with their probabilities, with a tab between. No answer is written as `(no answer)`."""
    none = [("(no answer)", found.no_answer)] if not found.text else []
    spans = [(" ".join(text.split()), score) for text, _, _, score in found.n_best]
    return [f"{text}\t{score:.4f}" for text, score in [*none, *spans][:n_best]]
