"""Run all checks in order."""

import sys
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

from decero.doctor import curve, texts, tokens, weights
from decero.doctor.findings import Finding
from decero.doctor.inspected_run import InspectedRun, open_run
from decero.errors import UserError

__all__ = ["CHECKS", "examine", "open_run"]

# (what the check needs, check): the corpus only; token rows and model; schedule and log.
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
    """Yield the findings of all checks, in order.

    If the recipe itself would refuse the run, its error message becomes one bad finding.
    """
    refused: set[str] = set()
    reported: set[str] = set()
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
                if str(error) not in reported:
                    mend = "fix this first; checks of tokens and model are skipped" if needs == "rows" else ""
                    yield Finding("recipe", "bad", f"{work.name} fails with: {error}", "", mend)
                reported.add(str(error))
