"""Summarize a suite: a table a label budget, contenders by task, with the average; in Markdown and as one page."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from decero.evaluation import tables, wording
from decero.evaluation.figures import figures, render
from decero.evaluation.statistics import holm
from decero.evaluation.suite_average import Estimate, Resampled
from decero.evaluation.verdict import LEVEL, ScoredRun, Verdict

METHOD = (
    "The average of a contender is the mean over tasks of its metric, in points of 100. Each metric is a mean over "
    "seeds. A task counts the same, whatever its size.",
    "Intervals, in square brackets: 95 %. Each resample draws test examples of every task, with replacement and "
    "independently of the other tasks, and training runs: seeds for each task, or pretrainings once for all tasks. The "
    "standard error gives a Student interval, because there are few seeds.",
    "A difference pairs contenders: the same test examples, the same seeds. Where a contender is not in every task, "
    "the difference is over the tasks that both have, and there is no average.",
    "A winner is named when p is below 0.05 after Holm's correction for the number of differences, and its interval "
    "does not contain 0. p is that of the Student interval.",
    "Marks in a task's column are those of its own comparison, in its folder: see the report there.",
)


@dataclass(frozen=True)
class SuiteVerdict:
    """The verdicts of all tasks, and their averages.

    averages: (contender, budget place) -> its average; None where a task has no run of it. gaps: the same keys, without
    the reference -> contender minus reference. winners: the same keys -> the better one, or None.
    """

    reference: str
    verdicts: Mapping[str, Verdict]
    contenders: tuple[str, ...]
    budgets: tuple[str, ...]
    averages: Mapping[tuple[str, int], Estimate | None]
    gaps: Mapping[tuple[str, int], Estimate | None]
    winners: Mapping[tuple[str, int], str | None]

    def headers(self) -> list[str]:
        titles = [f"{name}: {wording.name_of(verdict.metric)}" for name, verdict in self.verdicts.items()]
        return ["contender", *titles, "average", f"minus {self.reference}"]

    def rows(self, place: int) -> list[list[str]]:
        """Return a row a contender: its metric in each task, its average, its difference to the reference."""
        found = []
        for contender in self.contenders:
            cells = [_cell(verdict, contender, place) for verdict in self.verdicts.values()]
            average, gap = self.averages[contender, place], self.gaps.get((contender, place))
            found.append([contender, *cells, _interval(average), self._gap(gap)])
        return found

    def _gap(self, gap: Estimate | None) -> str:
        if gap is None:
            return "–"
        some = f" ({gap.tasks} of {len(self.verdicts)} tasks)" if gap.tasks < len(self.verdicts) else ""
        return _interval(gap, signed=True) + some

    def table(self) -> str:
        """Return the Markdown tables, one a label budget."""
        lines = []
        for place, budget in enumerate(self.budgets):
            texts = [self.headers(), *self.rows(place)]
            rows = [[tables.escaped(text).replace("|", "\\|") for text in row] for row in texts]
            marks = "|:--|" + "--:|" * (len(rows[0]) - 1)
            lines += [f"{budget}:", ""] if len(self.budgets) > 1 else []
            lines += [f"| {' | '.join(rows[0])} |", marks, *(f"| {' | '.join(row)} |" for row in rows[1:]), ""]
        return "\n".join([*lines, tables.escaped(self.legend())])

    def legend(self) -> str:
        first = next(iter(self.verdicts.values()))
        return f"{tables.legend(first)} Average and difference in points, with their 95 % intervals."

    def sentences(self) -> list[str]:
        """Return one sentence per contender and label budget, whoever wins."""
        return [self._sentence(contender, place) for contender, place in self.gaps]

    def _sentence(self, other: str, place: int) -> str:
        gap, ours = self.gaps[other, place], self.reference
        where = f"{self.budgets[place]}: " if len(self.budgets) > 1 else ""
        if gap is None:
            return f"{where}{ours} and {other} have no task in common."
        over = f"over {gap.tasks} of {len(self.verdicts)} tasks" if gap.tasks < len(self.verdicts) else "on average"
        winner = self.winners[other, place]
        if winner is None:
            return f"{where}no difference is shown between {ours} and {other} {over}: {_interval(gap, True)} points."
        loser = other if winner == ours else ours
        sign = 1 if winner == other else -1
        low, high = sorted((sign * gap.low, sign * gap.high))
        size = _interval(gap._replace(value=sign * gap.value, low=low, high=high))
        return f"{where}{winner} beats {loser} {over} by {size} points."

    def record(self) -> dict[str, Any]:
        """Return what result.json holds of the suite."""

        def named(found: Mapping[tuple[str, int], Estimate | None]) -> dict[str, Any]:
            return {
                wording.where(name, None, "") + (f", {self.budgets[place]}" if len(self.budgets) > 1 else ""): (
                    each._asdict() if each else None
                )
                for (name, place), each in found.items()
            }

        averages, gaps = named(self.averages), named(self.gaps)
        metric = {name: each["value"] if each else None for name, each in averages.items()}
        per_task = {name: verdict.record()["metric"] for name, verdict in self.verdicts.items()}
        facts = {"averages": averages, "differences": gaps, "tasks": per_task, "table": self.table()}
        return {"metric": metric} | facts | {"sentences": self.sentences()}


def summarize(
    verdicts: Mapping[str, Verdict], resampled: Sequence[Resampled], reference: str, contenders: Sequence[str]
) -> SuiteVerdict:
    """Average over tasks at each label budget. resampled: one a label budget, in the order of the verdicts' budgets."""
    places = range(len(resampled))
    budgets = tuple(_budget_name(verdicts, place) for place in places)
    averages = {(name, place): resampled[place].average(name) for place in places for name in contenders}
    gaps = {
        (name, place): resampled[place].difference(name, reference)
        for place in places
        for name in contenders
        if name != reference
    }
    judged = [key for key, gap in gaps.items() if gap is not None]
    adjusted = holm([gap.p for gap in gaps.values() if gap is not None])
    winners: dict[tuple[str, int], str | None] = dict.fromkeys(gaps)
    for key, p in zip(judged, adjusted, strict=True):
        gap = gaps[key]
        if gap and p < LEVEL and not gap.low <= 0 <= gap.high:
            winners[key] = key[0] if gap.value > 0 else reference
    return SuiteVerdict(reference, verdicts, tuple(contenders), budgets, averages, gaps, winners)


def write_suite_report(
    folder: Path, title: str, suite: SuiteVerdict, runs: Mapping[str, Sequence[ScoredRun]], facts: dict[str, str],
    notes: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Write suite.md and report.html, which needs no other file and no network. Return the page.

    runs: task -> its runs, for the curves of label efficiency. facts: task -> where its own report is, and its data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, verdict in suite.verdicts.items():
        figure = figures(verdict, runs[name]).get("metric_by_budget") if len(verdict.budgets) > 1 else None
        if figure is not None:
            uri = f"data:image/svg+xml;base64,{base64.b64encode(render(figure, 'svg')).decode()}"
            drawn.append({"heading": name, "uri": uri})
    line = tables.escaped
    text = [
        f"# {line(title)}",
        "",
        *(f"- {line(each)}" for each in (*suite.sentences(), *notes)),
        "",
        suite.table(),
        "",
    ]
    text += ["## How it was computed", "", *(f"- {line(each)}" for each in METHOD), "", "## Tasks", ""]
    text += [*(f"- {line(name)}: {line(fact)}" for name, fact in facts.items()), ""]
    (folder / "suite.md").write_text("\n".join(text), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    tones = [
        "even" if (winner := suite.winners[key]) is None else "win" if winner == suite.reference else "lose"
        for key in suite.gaps
    ]
    shown = [
        {"heading": budget, "headers": suite.headers(), "rows": suite.rows(place)}
        for place, budget in enumerate(suite.budgets)
    ]
    page = environment.get_template("suite.html.jinja").render(
        title=title, sentences=list(zip(tones, suite.sentences(), strict=True)), notes=notes, tables=shown,
        reference=suite.reference, legend=suite.legend(), figures=drawn, method=METHOD, facts=facts,
    )  # fmt: skip
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _budget_name(verdicts: Mapping[str, Verdict], place: int) -> str:
    names = dict.fromkeys(wording.labels(verdict.budgets[place], "examples") for verdict in verdicts.values())
    return " or ".join(names)


def _cell(verdict: Verdict, contender: str, place: int) -> str:
    compared = {(c.other, c.budget): c for c in verdict.comparisons}
    text, note = tables.cell_of(verdict, contender, verdict.budgets[place], compared)
    return f"{text} ({note})" if note else text


def _interval(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None:
        return "–"
    value, low, high = (f"{each:.1f}" for each in (estimate.value, estimate.low, estimate.high))
    sign = "+" if signed and estimate.value > 0 else ""
    return wording.minus(f"{sign}{value} [{low}, {high}]")
