"""`decero draw`: pictures of a class or of a caption, on one grid."""

import argparse
import math
import sys
from pathlib import Path

from tqdm.auto import tqdm

from decero.cli.picture_commands import loading_of_pictures
from decero.cli.text_commands import may_run_code, positive
from decero.errors import UserError

MOST = 1024  # pictures of a grid


def add_draw(commands) -> None:
    """Add `decero draw MODEL --class NAME`."""
    parser = commands.add_parser("draw", help="draw pictures of a class or a caption", allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument(
        "--class", dest="classes", action="append", metavar="NAME", help="class to draw; may be repeated (default: all)"
    )
    parser.add_argument(
        "--caption", type=_caption, action="append", metavar="TEXT",
        help="what to draw, in words, where the model learnt captions; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--n", type=positive, metavar="N", help="pictures of each class (default: 16; 8 where there are several)"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of what is drawn by lot (default: 0)")
    parser.add_argument(
        "--guidance", type=_guidance, metavar="W",
        help="1 follows the class as it was learnt, more exaggerates it (default: 2 for diffusion, 1 for image tokens)",
    )  # fmt: skip
    parser.add_argument("--steps", type=positive, metavar="N", help="diffusion: steps of the solver (default: 16)")
    parser.add_argument(
        "--temperature", type=_temperature, metavar="T", help="image tokens: below 1 prefers likely pixels (default: 1)"
    )
    parser.add_argument(
        "--complete", type=Path, metavar="FILE", help="image tokens: keep the upper half of this picture, draw the rest"
    )
    parser.add_argument("--out", type=Path, default=Path("grid.png"), metavar="FILE", help="PNG (default: grid.png)")
    may_run_code(parser)
    parser.set_defaults(function=run_draw)


def run_draw(arguments: argparse.Namespace) -> None:
    """Draw N pictures a class, and write them as one PNG: a square of one class, or a row a class."""
    from decero.execution.threads import set_threads
    from decero.inference.drawing import TokenDrawing, grid_of, load_drawing, save_png

    out: Path = arguments.out
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: give a name that ends in .png")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    set_threads()
    loaded = load_drawing(arguments.model, **loading_of_pictures(arguments))
    names = ("steps", "temperature", "guidance", "caption", "complete")
    options = loaded.options_of({name: getattr(arguments, name) for name in names}, prefix="--")
    wanted, half = options.pop("caption", []), options.pop("complete", None)
    wanted = [loaded.class_named(name) for name in arguments.classes or []] + wanted
    wanted = wanted or ([""] if half else loaded.classes)
    if not wanted:
        raise UserError(f"{loaded.name}: it draws what a caption says; give --caption TEXT")
    if half:
        assert isinstance(loaded, TokenDrawing)  # the others refuse --complete
        options["given_NG"] = loaded.upper_half(half)
    each = arguments.n or (16 if len(wanted) == 1 else 8)
    if len(wanted) * each > MOST:
        raise UserError(f"--n {each}: {len(wanted)} rows make {len(wanted) * each} pictures, and a grid holds {MOST}")
    with tqdm(total=len(wanted) * each, unit="picture", file=sys.stderr, dynamic_ncols=True,
              disable=not sys.stderr.isatty()) as bar:  # fmt: skip
        pictures = loaded.draw(
            [name for name in wanted for _ in range(each)], **options, seed=arguments.seed, done=bar.update
        )
    save_png(grid_of(pictures, math.ceil(math.sqrt(each)) if len(wanted) == 1 else each), out)
    titles = ", ".join(name or f"the lower half of {half}" for name in wanted)
    print(f"{out}: {each} of {titles}{'' if len(wanted) == 1 else ', a row each'}")


def _seed(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20):
        raise argparse.ArgumentTypeError(f"{word[:40]} is not a whole number from 0")
    return int(word)


def _guidance(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{word[:40]} is not a number from 0 to 1000")
    return value


def _temperature(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0.01 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{word[:40]} is not a number from 0.01 to 100")
    return value


def _caption(word: str) -> str:
    from decero.data.image_tokens import is_caption

    if not is_caption(word):
        raise argparse.ArgumentTypeError(f"{word[:40]!r} is no caption: give words")
    return word.strip()
