"""Add the command inspect: dimensions, parameters, memory and tokens of a model, from its configuration alone."""

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decero.cli.text_commands import may_run_code
from decero.errors import UserError
from decero.files import kind_of

PICTURES = (".png", ".svg")


def add_inspect(commands) -> None:
    """Add `decero inspect MODEL|CONFIG|NAME`."""
    what = "show the dimensions, the parameters by part and the memory of a model; its weights are not read"
    parser = commands.add_parser("inspect", help=what, allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL|CONFIG|NAME",
        help="folder, config.json, YAML preset, known name such as gpt2 (offline), NAME/MODEL on the hub, or "
        "package:NAME/FOLDER",
    )  # fmt: skip
    parser.add_argument("--text", metavar="TEXT", help="also show the tokens of this text with their ids")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the parameters by part: .png or .svg, by the ending"
    )
    may_run_code(parser)
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    picture = arguments.picture
    if picture is not None and picture.suffix.lower() not in PICTURES:
        raise UserError(f"--picture {picture}: unknown kind of picture; use a name that ends in .png or .svg")
    if picture is not None and kind_of(picture.parent) != "a folder":
        raise UserError(f"--picture {picture}: there is no folder {picture.parent}; make it first")
    gc.disable()  # imports make no garbage; looking for it in a million new objects takes a second
    from decero.explain.dimensions import inspect_model  # imported late, so that --help and mistakes answer fast
    from decero.explain.published import NotPublished

    gc.freeze()  # nor is there any to find in them at the end
    gc.enable()
    code = {name: getattr(arguments, name) for name in ("revision", "trust_remote_code", "code_revision")}
    found = inspect_model(arguments.model, arguments.text, **code)
    if isinstance(found, NotPublished):
        if picture is not None:
            raise UserError(f"--picture: the sizes of {found.name} are not published ({found.source})")
        line = {"name": found.name, "published": False, "source": found.source}
        print(json.dumps(line) if arguments.json else f"{found.name}: not published ({found.source})")
        return
    if picture is not None:
        if not found.parts:
            raise UserError(f"--picture: only the sizes of {found.name} are published ({found.source})")
        from decero.explain.parameter_picture import save_picture

        save_picture(found, picture)
    print(json.dumps(as_json(found), ensure_ascii=False) if arguments.json else as_text(found))


def as_json(found: Any) -> dict[str, Any]:
    """Return an `Inspection` as a record."""
    base = found.base and dict(zip(("architecture", "total"), found.base, strict=True))
    tied = [dict(zip(("name", "same_as", "parameters"), each, strict=True)) for each in found.tied]
    parameters = {"total": found.parameters, "stated": found.stated, "by_part": found.parts, "tied": tied, "base": base}
    record = {"name": found.name, "published": True, "source": found.source, "model_type": found.model_type}
    record |= {"architecture": found.architecture, "dimensions": found.dimensions, "parameters": parameters}
    tokens = {} if found.tokens is None else {"tokens": [asdict(token) for token in found.tokens]}
    return record | {"memory_bytes": found.memory} | tokens


def as_text(found: Any) -> str:
    """Return an `Inspection` as tables for people."""
    if found.parameters is None:
        head = [f"{found.name}: {found.stated} parameters"]
    else:
        head = [f"{found.name}: {found.parameters:,} parameters as {found.architecture}"]
    if found.base and found.base[1] != found.parameters:
        head.append(f"{found.base[0]} alone: {found.base[1]:,}")
    head.append(f"source: {found.source}")
    blocks = ["\n".join(head), _dimensions(found.dimensions)]
    if found.parts:
        blocks.append(_parts(found))
        blocks.append(_memory(found.memory))
    if found.tokens is not None:
        rows = [(str(token.id), token.token, json.dumps(token.text, ensure_ascii=False)) for token in found.tokens]
        blocks.append(f"{len(rows)} tokens\n" + _table(("id", "token", "text"), rows, "><<"))
    return "\n\n".join(blocks)


def _dimensions(stacks: dict[str, dict[str, Any]]) -> str:
    from decero.explain.stack_sizes import LABELS, written

    names = [name for name in LABELS if any(name in sizes for sizes in stacks.values())]
    if "vocab_size" in names and "max_position_embeddings" not in names:
        names.append("max_position_embeddings")
    absent = {"max_position_embeddings": "no limit"}
    rows = [
        (LABELS[name], *(written(sizes[name]) if name in sizes else absent.get(name, "-") for sizes in stacks.values()))
        for name in names
    ]
    header = ("dimension", *(stacks if len(stacks) > 1 else ["size"]))
    return _table(header, rows, "<" + ">" * len(stacks))


def _parts(found: Any) -> str:
    rows = [(part, f"{number:,}", found.share(part)) for part, number in found.parts.items()]
    text = _table(("part", "parameters", "share"), rows, "<>>")
    for name, other, number in found.tied:
        text += f"\n{name} is {other}: {number:,} parameters, counted once" if number > 1_000 else ""
    return text


def _memory(memory: dict[str, dict[str, int | None]]) -> str:
    rows = [(name, in_bytes(each["weights"]), in_bytes(each["training"])) for name, each in memory.items()]
    text = _table(("memory", "weights", "training with AdamW"), rows, "<>>")
    return f"{text}\nTraining: weights, gradients and two moments, without activations."


def in_bytes(number: int | None) -> str:
    """Format a number of bytes: `1.75 GB`; `-` for None."""
    if number is None:
        return "-"
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], sides: str) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)
