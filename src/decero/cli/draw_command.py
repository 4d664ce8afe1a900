"""`decero draw`: pictures of a class from noise, on one grid."""

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
    parser = commands.add_parser("draw", help="draw pictures of a class from noise", allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument(
        "--class", dest="classes", action="append", metavar="NAME", help="class to draw; may be repeated (default: all)"
    )
    parser.add_argument(
        "--n", type=positive, metavar="N", help="pictures of each class (default: 16; 8 where there are several)"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--steps", type=positive, default=50, metavar="N", help="steps of the solver (default: 50)")
    parser.add_argument(
        "--guidance", type=_guidance, default=2.0, metavar="W",
        help="1 follows the class as it was learnt, more exaggerates it (default: 2)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("grid.png"), metavar="FILE", help="PNG (default: grid.png)")
    may_run_code(parser)
    parser.set_defaults(function=run_draw)


def run_draw(arguments: argparse.Namespace) -> None:
    """Draw N pictures a class, and write them as one PNG: a square of one class, or a row a class."""
    from decero.execution.threads import set_threads
    from decero.inference.drawing import draw, grid_of, load_drawing, save_png

    out: Path = arguments.out
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: give a name that ends in .png")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    set_threads()
    loaded = load_drawing(arguments.model, **loading_of_pictures(arguments))
    names = arguments.classes or loaded.classes
    ids = [loaded.class_id(name) for name in names]
    each = arguments.n or (16 if len(ids) == 1 else 8)
    if len(ids) * each > MOST:
        raise UserError(f"--n {each}: {len(ids)} classes make {len(ids) * each} pictures, and a grid holds {MOST}")
    wanted = [number for number in ids for _ in range(each)]
    with tqdm(total=len(wanted), unit="picture", file=sys.stderr, dynamic_ncols=True,
              disable=not sys.stderr.isatty()) as bar:  # fmt: skip
        pictures = draw(
            loaded, wanted, steps=arguments.steps, guidance=arguments.guidance, seed=arguments.seed, done=bar.update
        )
    save_png(grid_of(pictures, math.ceil(math.sqrt(each)) if len(ids) == 1 else each), out)
    rows = "" if len(ids) == 1 else ", a row each"
    print(f"{out}: {each} of {', '.join(loaded.classes[number] for number in ids)}{rows}")


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
