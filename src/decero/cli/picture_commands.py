"""Answer about pictures: `decero classify MODEL PICTURE|FOLDER`, and the commands segment and detect."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from decero.cli import text_commands
from decero.cli.answer_lines import to_json
from decero.cli.text_commands import may_run_code, positive
from decero.errors import UserError

OF_TEXTS = (  # options of classify that pictures do not have
    "pair", "column", "pair_column", "label_column", "out", "bf16", "batch_tokens", "too_long",
)  # fmt: skip


def add_classify(commands) -> None:
    """Add `decero classify MODEL [TEXT|FILE|-|PICTURE|FOLDER]`."""
    parser = text_commands.add_classify(commands)
    usual = {name: parser.get_default(name) for name in OF_TEXTS}
    parser.set_defaults(function=run_classify, of_texts=usual)


def run_classify(arguments: argparse.Namespace) -> None:
    """Classify pictures with a model that reads them, else lines or rows of a table."""
    from decero.execution.threads import set_threads

    set_threads()
    if not classified(arguments):
        text_commands.run_lines(arguments)


def add_segment(commands) -> None:
    """Add `decero segment MODEL PICTURE|FOLDER`."""
    parser = commands.add_parser(
        "segment", help="find the class of each pixel of pictures, and paint it over them", allow_abbrev=False
    )
    of_pictures(parser)
    parser.set_defaults(function=run_segment)


def add_detect(commands) -> None:
    """Add `decero detect MODEL PICTURE|FOLDER`."""
    parser = commands.add_parser("detect", help="find objects in pictures, and draw their boxes", allow_abbrev=False)
    of_pictures(parser)
    parser.add_argument(
        "--threshold", type=share, default=0.5, metavar="P", help="least probability of an object (default: 0.5)"
    )
    parser.set_defaults(function=run_detect)


def share(word: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{word[:40]} is not a number from 0 to 1")
    return value


def of_pictures(parser: argparse.ArgumentParser) -> None:
    """Add what commands share that write pictures."""
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument("pictures", metavar="PICTURE|FOLDER", help="a picture, or a folder of them")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the painted pictures there, as PNG")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="pictures at a time (default: 8)")
    may_run_code(parser)


def loading_of_pictures(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_pictures` that the options give."""
    given = {name: getattr(arguments, name) for name in ("revision", "trust_remote_code", "code_revision")}
    return {name: value for name, value in given.items() if value}


def classified(arguments: argparse.Namespace) -> bool:
    """Print a line a picture: its path, the likeliest label and the probability; as JSON all labels.

    Returns False, and prints nothing, for a model that reads no pictures.
    """
    from decero.data.images import find_images
    from decero.inference.image_answers import classify_pictures, load_pictures, reads_pictures

    if not reads_pictures(arguments.model, **loading_of_pictures(arguments)):
        return False

    for name, usual in arguments.of_texts.items():
        if getattr(arguments, name, usual) != usual:
            raise UserError(f"--{name.replace('_', '-')} is for texts, and {arguments.model} reads pictures; remove it")
    if arguments.text == "-":
        raise UserError(f"{arguments.model} reads pictures: give a picture or a folder of pictures")
    paths = find_images(arguments.text)
    loaded = load_pictures(arguments.model, "classify", **loading_of_pictures(arguments))
    for path, found in zip(paths, classify_pictures(loaded, _shown(paths)), strict=True):
        label, probability = next(iter(found.items()))
        _print(to_json(picture=str(path), labels=found) if arguments.jsonl else f"{path}\t{label}\t{probability:.4f}")
    return True


def run_segment(arguments: argparse.Namespace) -> None:
    """Print a JSON line a picture: the share of each class, and the files that were written."""
    from PIL import Image

    from decero.data.images import find_images, open_image
    from decero.execution.threads import set_threads
    from decero.inference.image_answers import load_pictures, segment
    from decero.inference.painting import paint_mask

    set_threads()
    paths = find_images(arguments.pictures)
    loaded = load_pictures(arguments.model, "segment", **loading_of_pictures(arguments))
    targets = targets_of(paths, arguments)
    for path, found in zip(paths, segment(loaded, _shown(paths), arguments.batch_size), strict=True):
        written = {}
        if targets:
            image = open_image(str(path), str(path))
            written["overlay"] = save(paint_mask(image, found.mask, found.names), targets[path], "overlay")
            written["mask"] = save(Image.fromarray(found.mask), targets[path], "mask")
        _print(to_json(picture=str(path), shares=found.shares, **written))


def run_detect(arguments: argparse.Namespace) -> None:
    """Print a JSON line a picture: its objects, and the file that was written."""
    from decero.data.images import find_images, open_image
    from decero.execution.threads import set_threads
    from decero.inference.image_answers import detect, load_pictures
    from decero.inference.painting import paint_boxes

    set_threads()
    paths = find_images(arguments.pictures)
    loaded = load_pictures(arguments.model, "detect", **loading_of_pictures(arguments))
    targets = targets_of(paths, arguments)
    answers = detect(loaded, _shown(paths), arguments.threshold, arguments.batch_size)
    for path, found in zip(paths, answers, strict=True):
        written = {}
        if targets:
            written["overlay"] = save(paint_boxes(open_image(str(path), str(path)), found), targets[path], "overlay")
        objects = [{"label": each.label, "score": each.score, "box": list(each.box)} for each in found]
        _print(to_json(picture=str(path), objects=objects, **written))


def targets_of(paths: list[Path], arguments: argparse.Namespace) -> dict[Path, Path]:
    """Return the output path of each picture, without file extension; {} without --out. Makes the folder.

    Raises UserError where the folder cannot be written, where it lies in that of the pictures, and where two pictures
    would have one name.
    """
    if arguments.out is None:
        return {}
    if Path(arguments.pictures).is_dir() and arguments.out.resolve().is_relative_to(Path(arguments.pictures).resolve()):
        raise UserError(
            f"--out {arguments.out}: it lies in {arguments.pictures}, whose pictures are all read, also those that "
            "are written there; give a folder outside of it"
        )
    base = Path(arguments.pictures) if Path(arguments.pictures).is_dir() else Path(arguments.pictures).parent
    found = {path: arguments.out / "_".join(path.relative_to(base).with_suffix("").parts) for path in paths}
    named: dict[Path, Path] = {}
    for path, target in found.items():
        if target in named:
            raise UserError(f"--out: {named[target]} and {path} would have one name; rename one of them")
        named[target] = path
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {arguments.out}: cannot be written: {error.strerror}") from None
    return found


def save(image: Any, target: Path, kind: str) -> str:
    """Write a PNG and return its path. Raises UserError where it cannot be written."""
    path = target.with_name(f"{target.name}.{kind}.png")
    try:
        image.save(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return str(path)


def _shown(paths: list[Path]) -> Iterator[Path]:
    """Yield paths behind a progress bar on a terminal."""
    hidden = len(paths) < 2 or not sys.stderr.isatty()
    yield from tqdm(paths, unit="picture", file=sys.stderr, dynamic_ncols=True, disable=hidden)


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
