"""Format a verdict as a table, contender by label budget: in Markdown, and as rows for the HTML page."""

import html

import numpy as np

from decero.evaluation import wording
from decero.evaluation.tuning_curve import values_text
from decero.formatting import count, duration

BETTER, WORSE, SAME, UNKNOWN = "▲", "▼", "≈", "?"


def legend(verdict) -> str:
    pretrainings = any(cell.n_pretrainings > 1 for cell in verdict.cells)
    over = "seeds and pretrainings" if pretrainings else "seeds"
    return (
        f"{BETTER} better than {verdict.reference}, {WORSE} worse, {SAME} no difference shown, {UNKNOWN} not "
        f"comparable. Mean ± standard deviation over {over}."
    )


def heading(verdict) -> str:
    """`Test accuracy (%)`."""
    return f"{verdict.split.capitalize()} {wording.title(verdict.metric)}"


def headers(verdict) -> list[str]:
    unit = verdict.unit
    columns = [wording.labels(b, unit) for b in verdict.budgets] if unit else [wording.title(verdict.metric)]
    own = ["own settings"] if any(verdict.settings.values()) else []
    trained = ["trained parameters"] if _has_adapters(verdict) else []
    memory = ["peak memory"] if _differ_in_optimizer(verdict) else []
    return ["contender", *columns, "parameters", *trained, "median time per run", *memory, "pretraining, once", *own]


def rows(verdict) -> list[dict]:
    """Return a row per contender: {"contender", "cells": [(text, note), ...], "others": texts of the last columns}."""
    compared = {(c.other, c.budget): c for c in verdict.comparisons}
    result = []
    for contender in verdict.contenders:
        time, upfront = wording.times(verdict, contender)
        cells = [cell for cell in verdict.cells if cell.contender == contender]
        number = max(cell.n_pretrainings for cell in cells)
        once = (f"{number} × " if number > 1 else "") + duration(upfront) if upfront else "–"
        own = [verdict.settings.get(contender) or "–"] if any(verdict.settings.values()) else []
        total, trained = (max(getattr(cell, n) for cell in cells) for n in ("num_parameters", "trained_parameters"))
        peak = (
            [f"{np.mean(used) / 2**20:,.0f} MiB" if (used := [c.peak_memory_bytes for c in cells if c.n_ok]) else "–"]
            if _differ_in_optimizer(verdict)
            else []
        )
        sizes = [count(total), *([count(trained or total)] if _has_adapters(verdict) else [])]
        result.append(
            {
                "contender": contender,
                "cells": [cell_of(verdict, contender, budget, compared) for budget in verdict.budgets],
                "others": [*sizes, duration(time), *peak, once, *own],
            }
        )
    return result


def _differ_in_optimizer(verdict) -> bool:
    """Tell whether optimizers are compared. Then their memory is of interest, too."""
    return any(part.startswith("name ") for own in verdict.settings.values() for part in (own or "").split(", "))


def _has_adapters(verdict) -> bool:
    return any(cell.trained_parameters for cell in verdict.cells)


def markdown(verdict) -> str:
    """Return the table, a blank line and the legend. Text is escaped, because a contender may have any name."""

    def line(texts) -> str:
        return f"| {' | '.join(escaped(text).replace('|', chr(92) + '|') for text in texts)} |"

    columns = headers(verdict)
    lines = [line(columns), "|:--|" + "--:|" * (len(columns) - 1)]
    for row in rows(verdict):
        cells = [f"{text} ({note})" if note else text for text, note in row["cells"]]
        lines.append(line([row["contender"], *cells, *row["others"]]))
    return "\n".join([*lines, "", escaped(f"{heading(verdict)}. {legend(verdict)}")])


def tuning_rows(verdict, tuning) -> list[list[str]]:
    """The headers, then a row a contender and budget: chosen values, their score, what n trials give on average."""
    if not tuning:
        return []
    most = max(len(each.tried) for each in tuning)
    shown = sorted({1, 2, 4, 8, 16, 32, most} & set(range(1, most + 1)))
    score = f"validation {wording.title(tuning[0].metric)}"
    budgets = ["budget"] if verdict.unit else []
    rows = [["contender", *budgets, "chosen", score, *(f"best of {n}, expected" for n in shown)]]
    for each in tuning:
        budget = [wording.labels(each.budget, verdict.unit)] if verdict.unit else []
        curve = [wording.value(each.metric, each.expected[n - 1]) if n <= len(each.expected) else "–" for n in shown]
        contender = each.contender if each.fold is None else f"{each.contender}, fold {each.fold}"
        rows.append([contender, *budget, values_text(each.chosen), wording.value(each.metric, each.best), *curve])
    return rows


def escaped(text: str) -> str:
    """Return the text as one line of Markdown that does not render as HTML."""
    return html.escape(" ".join(str(text).split()), quote=False)


def cell_of(verdict, contender: str, budget: int | None, compared: dict) -> tuple[str, str]:
    """Return text and note of a cell, such as `("61.0 ± 3.4 ▼", "1 of 3 failed")`."""
    cell = verdict.cell(contender, budget)
    if cell is None:
        return "–", ""
    failed = f"{cell.n_failed} of {cell.n_ok + cell.n_failed} failed" if cell.n_failed else ""
    comparison = compared.get((contender, budget))
    if not cell.n_ok or comparison is None:
        mark = ""
    elif comparison.reason:
        mark = f" {UNKNOWN}"
    else:
        mark = f" {BETTER if comparison.winner == contender else WORSE if comparison.winner else SAME}"
    return wording.spread(verdict.metric, cell) + mark, failed
