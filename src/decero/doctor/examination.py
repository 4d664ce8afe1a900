"""The checks, in order, each with what it needs to be asked at all."""

import sys
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

from decero.doctor import curve, texts, tokens, weights
from decero.doctor.findings import Finding
from decero.doctor.inspected_run import InspectedRun, open_run
from decero.errors import UserError

__all__ = ["CHECKS", "examine", "open_run"]

# What a check needs: the corpus alone; token rows and model; the schedule and the log.
CHECKS: tuple[tuple[str, Callable[[InspectedRun], Iterator[Finding]]], ...] = (
    ("corpus", texts.duplicates),
    ("corpus", texts.empty),
    ("corpus", texts.leakage),
    ("corpus", texts.labels),
    ("rows", tokens.rows),
    ("rows", tokens.tokenizer),
    ("rows", tokens.floor),
    ("rows", weights.overfit),
    ("rows", weights.layers),
    ("rows", weights.updates),
    ("log", curve.schedule),
    ("log", curve.curve),
    ("log", curve.waiting),
)


def examine(work: InspectedRun) -> Iterator[Finding]:
    """Every finding of every check, in order. What the recipe itself would refuse is one bad finding, in its words."""
    refused: set[str] = set()
    said: set[str] = set()
    shown = sys.stderr.isatty()
    with tqdm(CHECKS, unit="check", file=sys.stderr, dynamic_ncols=True, leave=False, disable=not shown) as bar:
        for needs, check in bar:
            if needs in refused:
                continue
            bar.set_postfix_str(check.__name__)
            try:
                yield from check(work)
            except UserError as error:
                refused.add(needs)
                if str(error) not in said:
                    mend = "the checks of tokens and model wait for that" if needs == "rows" else ""
                    yield Finding("recipe", "bad", f"{work.name} would refuse this: {error}", "", mend)
                said.add(str(error))
