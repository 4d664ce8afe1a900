"""Write a public data set of the hub to a folder, as `decero data` does."""

import shutil
from pathlib import Path

from decero.data.corpus import load_corpus
from decero.data.public_sets import BY_HAND, PUBLIC_SETS
from decero.errors import UserError, did_you_mean


def fetch(folder: str, root: Path) -> str:
    """Write train, validation and test of a public set as parquet to `root/folder`. Return a line about it.

    Only the first rows are read from the hub, as they arrive. Missing splits are carved from train.

    Raises UserError for an unknown name, a set to make by hand, a folder that is there already, and a hub that does
    not answer.
    """
    if folder in BY_HAND:
        raise UserError(
            f"decero data: {folder} cannot be fetched; put train.parquet, validation.parquet and test.parquet into "
            f"{root / folder}, with {BY_HAND[folder]}"
        )
    if folder not in PUBLIC_SETS:
        near = did_you_mean(folder, PUBLIC_SETS) or f"; there are {', '.join(PUBLIC_SETS)}"
        raise UserError(f"decero data: unknown data set {folder}{near}")
    public, target = PUBLIC_SETS[folder], root / folder
    if target.exists():
        raise UserError(f"{target}: already exists; delete it first, or give another --out")
    first, *others = public.columns.values()
    corpus = load_corpus(
        name=public.name, config_name=public.config_name, streaming=True, max_rows=public.rows, text_column=first,
        columns=dict.fromkeys(others, "decero data"), validation_fraction=0.02, test_fraction=0.04,
    )  # fmt: skip
    partial = target.with_name(f".{folder}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for split, rows in corpus.items():
            names = {there: here for here, there in public.columns.items() if there != here}
            rows.select_columns(list(public.columns.values())).rename_columns(names).to_parquet(
                str(partial / f"{split}.parquet")
            )
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in corpus.items())
    return f"{target}: {sizes} rows of {public.name}"
