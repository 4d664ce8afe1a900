"""Run all checks in order."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from decero.data.packages import resolve_package_path
from decero.doctor import answers, curve, texts, tokens, weights
from decero.doctor.findings import Finding, NotExaminedError
from decero.doctor.inspected_run import InspectedRun, open_run
from decero.doctor.model_files import check_checkpoint, check_kinds
from decero.doctor.run_files import damaged_files
from decero.errors import UserError, root_line

__all__ = ["CHECKS", "diagnose", "examine", "open_run"]


def files(work: InspectedRun) -> Iterator[Finding]:
    """Find damaged files in the folder of the run. Later checks use what is intact."""
    yield from work.damage


def start(work: InspectedRun) -> Iterator[Finding]:
    """Refuse damaged files of the checkpoint and the tokenizer that the run starts from."""
    for name, check in (
        (work.config.model.name_or_path, check_checkpoint),
        (work.config.tokenizer.name_or_path if work.reads == "texts" else None, check_kinds),
    ):
        folder = resolve_package_path(name) if name else ""
        if os.path.isdir(folder):
            check(Path(folder))
    yield from ()


# (what the check needs, check): files; the corpus only; token rows and model; schedule and log.
CHECKS: tuple[tuple[str, Callable[[InspectedRun], Iterator[Finding]]], ...] = (
    ("files", files),
    ("rows", start),
    ("corpus", texts.duplicates),
    ("corpus", texts.empty),
    ("corpus", texts.leakage),
    ("corpus", texts.labels),
    ("rows", tokens.rows),
    ("rows", answers.answers),
    ("rows", tokens.tokenizer),
    ("rows", tokens.floor),
    ("rows", weights.overfit),
    ("rows", weights.layers),
    ("rows", weights.updates),
    ("log", curve.schedule),
    ("log", curve.curve),
    ("log", curve.waiting),
)


def diagnose(where: str, recipe: str | None = None, changes: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield the findings of all checks of a run or a configuration file.

    A run whose settings cannot be read is a finding, too: then only its other files are checked.
    Raises UserError as `open_run` does: for a configuration file that its recipe refuses, and for what is no run.
    """
    try:
        work = open_run(where, recipe, changes)
    except UserError as error:
        if isinstance(error, NotExaminedError) or not os.path.isdir(where):
            raise
        yield from damaged_files(Path(where))
        mend = "fix this first, or copy the file again; only the other files of the run were checked"
        yield Finding("settings", "bad", str(error), "", mend)
        return
    yield from examine(work)


def examine(work: InspectedRun) -> Iterator[Finding]:
    """Yield the findings of all checks, in order.

    If the recipe itself would refuse the run, its error message becomes one bad finding. So does a check that fails in
    a library.
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
            except Exception as error:  # whatever a library raises for damage that no check knows
                what = f"this check failed with {type(error).__name__}: {root_line(error)}"
                mend = "if all files are as the run wrote them, report this as a bug of decero"
                yield Finding(check.__name__, "bad", what, "", mend)
