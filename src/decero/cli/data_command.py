"""Add the command `decero data`: public data for the configs that read `data/`."""

import argparse
from pathlib import Path


def add_data(commands) -> None:
    """Add `decero data [NAME ...]`."""
    parser = commands.add_parser(
        "data", help="fetch public data sets for the configs that read data/", allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets to fetch; none: list them")
    parser.add_argument(
        "--out", type=Path, default=Path("data"), metavar="FOLDER", help="where to write (default: data)"
    )
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    from decero.data.public_sets import BY_HAND, PUBLIC_SETS

    if arguments.names:
        from decero.data.fetch_public_set import fetch  # imported late, so that the list comes fast

        for name in arguments.names:
            print(fetch(name, arguments.out), flush=True)
        print("The figures of the configs were measured on other texts; expect other ones.")
        return
    for name, public in PUBLIC_SETS.items():
        there = "here" if (arguments.out / name).is_dir() else "missing"
        columns = ", ".join(public.columns)
        print(f"{arguments.out / name}  ({there}): {public.kind}; columns {columns}; from {public.name}")
    for name, columns in BY_HAND.items():
        there = "here" if (arguments.out / name).is_dir() else "missing"
        print(f"{arguments.out / name}  ({there}): make it yourself; columns {columns}")
    print(
        "\nFetch the first ones by name: decero data text_en. Without a hub, put train.parquet, validation.parquet and"
    )
    print("test.parquet with these columns there, or name your own files: data.files.train=FILE")
