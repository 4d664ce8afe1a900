"""Add the command demo: a local page for a checkpoint, or a folder that is a Space."""

import argparse
from pathlib import Path

from decero.cli.text_commands import loading_of, loads
from decero.errors import UserError


def add_demo(commands) -> None:
    """Add `decero demo MODEL`."""
    what = "show a checkpoint on a local page: its task, its attention, its dimensions"
    parser = commands.add_parser("demo", help=what, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument("--port", type=_port, metavar="P", help="port of the page (default: the first free from 7860)")
    parser.add_argument(
        "--write-space", type=Path, metavar="FOLDER",
        help="write the page as a Space for the hub into a new folder, and serve nothing",
    )  # fmt: skip
    loads(parser)
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    folder = arguments.write_space
    if folder is not None and arguments.port is not None:
        raise UserError("--port has no effect with --write-space; give one of them")
    from decero.demo.pages import build_app, require_gradio, serve  # imported late, so that mistakes answer fast

    require_gradio()
    if folder is None:
        serve(build_app(arguments.model, **loading_of(arguments)), arguments.port)
        return
    from decero.demo.space import write_space

    write_space(arguments.model, folder, **loading_of(arguments))
    print(f"{folder}: a Space. Try it: python {folder}/app.py")
    print(f"Send it: hf upload NAME/SPACE {folder} . --repo-type space")


def _port(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 0 < int(word[:9]) < 2**16):
        raise argparse.ArgumentTypeError(f"{word[:40]} is no port; give a number from 1 to 65535")
    return int(word)
