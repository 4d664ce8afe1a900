"""Add the command score: how likely a language model finds each line."""

import argparse
import sys
from typing import Any

from decero.cli.answer_lines import to_json
from decero.cli.text_commands import line_parser, loading_of
from decero.cli.text_lines import read_lines

METHODS = ("within_word_l2r", "original", "sentence_l2r")
NOT_COMPARABLE = (
    "pseudo figures compare masked models only, not with causal ones (see --pseudo-likelihood sentence_l2r)"
)


def add_score(commands) -> None:
    """Add `decero score MODEL [TEXT|FILE|-]`."""
    what = "score each line with a masked or causal language model: log-likelihood, perplexity, bits a byte"
    parser = line_parser(commands, "score", what)
    parser.add_argument(
        "--pseudo-likelihood", choices=METHODS,
        help="masked model: what is masked with a token: the rest of its word (default: within_word_l2r), nothing, or "
        "all text after it",
    )  # fmt: skip
    parser.add_argument(
        "--start-token", metavar="TOKEN", help="causal model: token before each line (default: bos, or else eos)"
    )
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    from tqdm.auto import tqdm  # imported late, so that --help and mistakes answer fast

    from decero import inference
    from decero.execution.threads import set_threads

    set_threads()
    loaded = inference.load(arguments.model, "score", **loading_of(arguments))
    lines, total = read_lines(arguments.text)
    typed = arguments.text == "-" and sys.stdin.isatty()  # somebody types and waits for each answer
    bar = tqdm(total=total, unit="line", file=sys.stderr, dynamic_ncols=True, disable=typed or not sys.stderr.isatty())
    options = {name: getattr(arguments, name) for name in ("pseudo_likelihood", "start_token", "batch_tokens")}
    options |= {"warn": lambda line: bar.write(f"warning: {line}", file=sys.stderr), "first_window": 1 if typed else 32}
    texts: list[str] = []  # read but not answered yet
    found = []
    with bar:
        for scored in inference.score(loaded, (texts.append(line) or line for line in lines), **options):  # type: ignore[func-returns-value]
            found.append((scored.kind, scored.total, len(scored.tokens), scored.size))
            write = _record if arguments.jsonl else _line
            print(write(texts.pop(0), scored), flush=True)
            bar.update()
    _sum(found)


def _figures(kind: str, total: float, tokens: int, size: int | None) -> dict[str, Any]:
    """Return name -> number. A number that there is not is None."""
    from decero.evaluation.text_metrics import likelihood_figures

    pseudo = "pseudo_" if kind.startswith("pseudo") else ""
    none = dict.fromkeys([f"{pseudo}perplexity", f"{pseudo}bits_per_byte"])
    return {kind: total} | none | (likelihood_figures(-total, tokens, size or None, bool(pseudo)) if tokens else {})


def _record(text: str, scored: Any) -> str:
    tokens = [
        {"token": token, "log_probability": float(value)}
        for token, value in zip(scored.tokens, scored.log_probabilities, strict=True)
    ]
    return to_json(text=text, **_figures(scored.kind, scored.total, len(tokens), scored.size), tokens=tokens)


def _line(text: str, scored: Any) -> str:
    """Write the numbers with tabs between them; nothing for an empty line."""
    if not scored.tokens:
        return ""
    figures = _figures(scored.kind, scored.total, len(scored.tokens), scored.size)
    return "\t".join("-" if value is None else f"{value:.4f}" for value in figures.values())


def _sum(found: list[tuple[str, float, int, int | None]]) -> None:
    """Say the numbers of all lines in sum, with their names."""
    if not any(tokens for _, _, tokens, _ in found):
        return
    kind, sizes = found[0][0], [size for *_, size in found]
    size = None if None in sizes else sum(size for size in sizes if size is not None)
    figures = _figures(kind, sum(each[1] for each in found), sum(each[2] for each in found), size)
    named = [f"{name} {value:.4f}" for name, value in figures.items() if value is not None]
    if size is None:
        named.append("no bits a byte: tokens do not give the text back")
    print(f"{len(found):,} lines: {', '.join(named)}", file=sys.stderr)
    if kind.startswith("pseudo"):
        print(NOT_COMPARABLE, file=sys.stderr)
