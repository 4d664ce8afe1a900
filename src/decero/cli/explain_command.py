"""Add the command explain: what a model does inside with a text, as an offline page, PNG or SVG."""

import argparse
import sys
from pathlib import Path
from typing import Any

from decero.cli.text_commands import loading_of, loads
from decero.cli.text_lines import check_no_file, read_lines
from decero.errors import UserError
from decero.files import kind_of, write_whole

VIEWS = ("attention", "lens", "rollout", "ablation", "positions", "attribution", "dream")
KINDS = ("self", "causal", "cross")
NOISE = "noise"  # instead of a picture: a dream begins with grey noise
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def add_explain(commands) -> None:
    """Add `decero explain MODEL TEXT|FILE|PICTURE|- --out page.html`."""
    what = "show what a model does inside with a text or a picture: attention, layers, heads, as an offline page"
    parser = commands.add_parser("explain", help=what, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument(
        "text",
        metavar="TEXT|FILE|-",
        help="text, file of lines, a picture, noise (for --view dream), or - for standard input",
    )
    parser.add_argument(
        "--out", type=Path, metavar="PAGE", help="page.html for one text, or a folder: a page a line, and index.html"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the view as a PNG, 300 dots an inch")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the view as an SVG, with text as text")
    parser.add_argument(
        "--view", action="append", choices=VIEWS, help="what to show; may be given several times (default: attention)"
    )
    parser.add_argument(
        "--layer",
        type=_from_zero,
        metavar="L",
        help="layer of the picture, also the one that the page opens, from 0; for a dream, the layer to strengthen",
    )
    parser.add_argument("--head", type=_from_zero, metavar="H", help="head of that layer, from 0 (default: all)")
    parser.add_argument("--kind", choices=KINDS, help="attention of the picture (default: cross if there is one)")
    parser.add_argument(
        "--target",
        metavar="TEXT",
        help="text that the decoder reads (default: the model writes one); for a dream, the class to strengthen",
    )
    parser.add_argument(
        "--seed", type=_from_zero, metavar="N", help="for a dream: seed of its noise and shifts (default: 0)"
    )
    parser.add_argument(
        "--language", choices=("en", "es"), default="en", help="language of the page: en (default) or es"
    )
    loads(parser)
    parser.set_defaults(function=_run)


def _from_zero(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise argparse.ArgumentTypeError(f"{word[:40]} is not a whole number from 0 on")
    return int(word)


def _run(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    dreams = "dream" in arguments.view
    is_picture = Path(arguments.text).suffix.lower() in PICTURES and kind_of(arguments.text) == "a file"
    if is_picture or (dreams and arguments.text == NOISE):
        _explain_picture(arguments)
        return
    if dreams:
        raise UserError(f"--view dream needs a picture or the word {NOISE}, not {arguments.text[:40]}")
    texts = _texts(arguments)
    one_page = arguments.out is not None and arguments.out.suffix == ".html"
    if len(texts) > 1 and (one_page or arguments.png or arguments.svg or arguments.target is not None):
        given = {"--target": arguments.target is not None, "--out": one_page, "--png": arguments.png, "--svg": True}
        wrong = next(option for option, there in given.items() if there)
        fix = "a folder: it gets a page a line" if wrong == "--out" else "one text, and --out with a folder for more"
        raise UserError(f"{arguments.text}: {len(texts)} lines, but {wrong} is for one text; give {fix}")
    _explain(arguments, texts, one_page)


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that cannot be, before anything large is loaded."""
    places = {"--out": arguments.out, "--png": arguments.png, "--svg": arguments.svg}
    if not any(places.values()):
        raise UserError("nothing to write: give --out page.html, --png FILE or --svg FILE")
    for option, path in places.items():
        if path is None:
            continue
        if option != "--out" and path.suffix.lower() != option.replace("--", "."):
            raise UserError(f"{option} {path}: give a name that ends in {option.replace('--', '.')}")
        kind = kind_of(path)
        if option == "--out" and path.suffix not in ("", ".html") and kind != "a folder":
            raise UserError(f"--out {path}: give a name that ends in .html, or a folder")
        folder = option == "--out" and path.suffix != ".html"
        if kind not in (("", "a folder") if folder else ("", "a file")):
            raise UserError(f"{option} {path}: this is {kind}; give {'a folder' if folder else 'a file'}")
        if kind_of(path.parent) != "a folder":
            raise UserError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if arguments.head is not None and arguments.layer is None:
        raise UserError(f"--head {arguments.head} needs --layer L: heads are counted in each layer")
    views = arguments.view = list(dict.fromkeys(arguments.view or ["attention"]))
    if len(views) > 1 and (arguments.png or arguments.svg):
        raise UserError(f"--png and --svg draw one view; {len(views)} were given: {', '.join(views)}")
    if arguments.seed is not None and "dream" not in views:
        raise UserError("--seed is for --view dream; remove it")
    for option in ("layer", "kind"):
        shown = {"attention", "dream"} if option == "layer" else {"attention"}
        if getattr(arguments, option) is not None and not shown & set(views):
            raise UserError(f"--{option} has no effect on --view {views[0]}; remove it")


def _texts(arguments: argparse.Namespace) -> dict[int, str]:
    """Return line number -> text, without empty lines. A text that is typed is one, whatever it holds."""
    kind = kind_of(arguments.text)
    typed = arguments.text != "-" and kind in ("", "a folder")
    if typed:
        check_no_file(arguments.text, kind)
    lines = [arguments.text] if typed else list(read_lines(arguments.text)[0])
    texts = {number: line for number, line in enumerate(lines, start=1) if line.strip()}
    if not texts:
        raise UserError("the text is empty" if typed else f"{arguments.text}: there is no line with a text")
    for number, text in texts.items():
        if any("\ud800" <= sign <= "\udfff" for sign in text + (arguments.target or "")):
            raise UserError(f"line {number}: the text or the target is not UTF-8")
    return texts


def _explain(arguments: argparse.Namespace, lines: dict[int, str], one_page: bool) -> None:
    from tqdm.auto import tqdm  # imported late, so that --help and mistakes answer fast

    from decero import inference
    from decero.execution.threads import set_threads
    from decero.explain.explaining import Explainer

    set_threads()
    loaded = inference.load(arguments.model, None, **loading_of(arguments))
    texts = [_pair(loaded, number, line) for number, line in lines.items()]
    bar = tqdm(unit="step", file=sys.stderr, dynamic_ncols=True, disable=not sys.stderr.isatty())
    with bar:
        explainer = Explainer(
            loaded, texts, target=arguments.target, views=arguments.view, language=arguments.language,
            place=(arguments.kind, arguments.layer, arguments.head), done=lambda *step: bar.update(),
        )  # fmt: skip
        explainer.check(list(lines))
        made: list[tuple[Path, str | bytes]] = []  # all of it before the first file is written
        for option in ("png", "svg"):
            if (path := getattr(arguments, option)) is not None:
                made += _numbered(path, explainer.pictures(option))
        if one_page:
            made.append((arguments.out, explainer.page(0)))
        elif arguments.out is not None:  # pages of many lines are too large to keep; every line was read by `check`
            names = [f"{number:04}.html" for number in lines]
            first = explainer.page(0, in_index=True)
            arguments.out.mkdir(exist_ok=True)
            for index, name in enumerate(names):
                write_whole(arguments.out / name, explainer.page(index, in_index=True) if index else first)
            made.append((arguments.out / "index.html", explainer.index(names)))
        for path, content in made:
            write_whole(path, content)
            print(path, file=sys.stderr)


def _explain_picture(arguments: argparse.Namespace) -> None:
    """Write the page and the pictures of one picture."""
    from decero.cli.picture_commands import loading_of_pictures
    from decero.data.images import open_image
    from decero.execution.threads import set_threads
    from decero.explain.dream import Goal, noise_picture
    from decero.explain.page import page
    from decero.explain.picture_record import picture_views, record_picture
    from decero.explain.pictures import render
    from decero.inference.image_answers import load_pictures, reads_pictures

    dreams = "dream" in arguments.view
    for option in ("head", "kind", "target"):
        if getattr(arguments, option) is not None and (option == "kind" or not dreams):
            raise UserError(f"--{option} has no effect on a picture; remove it")
    if arguments.target is not None and arguments.layer is not None:
        raise UserError("a dream strengthens one class or one layer: give --target, or --layer and --head")
    goal = Goal(arguments.target, arguments.layer if dreams else None, arguments.head, arguments.seed or 0)
    set_threads()
    loading = loading_of_pictures(arguments)
    loaded = load_pictures(arguments.model, reads_pictures(arguments.model, **loading) or "classify", **loading)
    picture = (
        noise_picture(loaded, goal.seed) if arguments.text == NOISE else open_image(arguments.text, arguments.text)
    )
    recording = record_picture(loaded, picture, arguments.text)
    views = picture_views(loaded, recording, picture, arguments.view, arguments.layer, arguments.language, goal)
    made: list[tuple[Path, str | bytes]] = []
    for option in ("png", "svg"):
        if (path := getattr(arguments, option)) is not None:
            made.append((path, render(views[0].panels[0].figure, option)))  # type: ignore[union-attr]
    if arguments.out is not None:
        place = arguments.out
        if place.suffix != ".html":
            raise UserError(f"--out {place}: of a picture there is one page; give a name that ends in .html")
        made.append((place, page(recording, views, language=arguments.language)))
    for path, content in made:
        write_whole(path, content)
        print(path, file=sys.stderr)


def _pair(loaded: Any, number: int, line: str) -> str | tuple[str, str]:
    """Split the line of a model that was fine-tuned on pairs at its tab."""
    from decero.inference import reads_pairs

    if not reads_pairs(loaded):
        return line
    texts = line.split("\t")
    if len(texts) != 2:
        raise UserError(f"line {number}: the model reads pairs: give two texts with one tab between them")
    return texts[0], texts[1]


def _numbered(path: Path, pictures: list[bytes]) -> list[tuple[Path, str | bytes]]:
    """Name the pictures of a view: the first one as the user said, the others with -2, -3 ..."""
    names = [path, *(path.with_stem(f"{path.stem}-{i}") for i in range(2, len(pictures) + 1))]
    return list(zip(names, pictures, strict=False))
