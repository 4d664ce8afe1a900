"""Draw the figures of a report. A contender has the same colour and marker in all; files are reproducible."""

import io
import math
import textwrap

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from decero.evaluation import wording
from decero.evaluation.confusion import heat_map
from decero.formatting import duration

# Okabe & Ito 2008, for every kind of colour vision; without their yellow, which is too pale on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")  # one more than colours: 72 looks
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "decero",  # otherwise every file has random ids
}
NAME_WIDTH = 34  # characters per legend line
H, D = 3600, 86400
DURATIONS = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, H, 3 * H, 10 * H, D, 3 * D, 10 * D, 30 * D)  # ticks, seconds


def figures(verdict, runs, tuning=(), labels=()) -> dict[str, Figure]:
    """Draw the figures: file stem -> figure.

    metric_by_budget (if there are several budgets), cost_quality, learning_curves, confusion (of single labels) and
    tuning (if there was any).
    """
    with style():
        drawn = {"metric_by_budget": _metric_by_budget(verdict)} if len(verdict.budgets) > 1 else {}
        drawn |= {"cost_quality": _cost_quality(verdict, runs), "learning_curves": _learning_curves(verdict, runs)}
        confusion = heat_map(verdict, labels)
        drawn |= {"confusion": confusion} if confusion else {}
        return drawn | ({"tuning": _tuning(verdict, tuning)} if tuning else {})


def render(figure: Figure, kind: str) -> bytes:
    """Render a figure as "png" or "svg". The same figure gives the same bytes: the file holds no date."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with style():
        figure.savefig(buffer, format=kind, dpi=160, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def style():
    """Return a context in which matplotlib uses decero's style and ignores the user's matplotlibrc."""
    settings: dict = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    return matplotlib.rc_context(settings | STYLE)


def _look(verdict, contender: str) -> dict:
    i = verdict.contenders.index(contender)
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _legend(figure: Figure, verdict, contenders) -> None:
    def label(name: str) -> str:
        return textwrap.fill(name, NAME_WIDTH).replace("$", r"\$")  # matplotlib reads text between $ as mathematics

    handles = [Line2D([], [], **_look(verdict, name), label=label(name)) for name in contenders]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncol=min(len(handles), 2), alignment="left")


def _note(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#666666")


def _frame(verdict):
    """Make a figure with one panel and the test metric on the y axis; also return the cells that have results."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel(f"{verdict.split} {wording.title(verdict.metric)}")
    cells = {name: [c for c in verdict.cells if c.contender == name and c.n_ok] for name in verdict.contenders}
    cells = {name: some for name, some in cells.items() if some}
    if not cells:
        _note(axes, "no run succeeded")
    _legend(figure, verdict, cells)
    return figure, axes, cells, wording.scale(verdict.metric)


def _metric_by_budget(verdict) -> Figure:
    """Plot mean and standard deviation over seeds against the label budget; each seed is a small dot."""
    figure, axes, cells_of, scale = _frame(verdict)
    x_of = _budget_positions(verdict.budgets)
    for contender, cells in cells_of.items():
        look = _look(verdict, contender)
        # shift contenders sideways, so that error bars do not overlap
        shift = 1.03 ** (verdict.contenders.index(contender) - (len(verdict.contenders) - 1) / 2)
        xs = [x_of[cell.budget] * shift for cell in cells]
        sds = [scale * cell.sd for cell in cells]  # NaN, for a single seed, draws no bar
        axes.errorbar(xs, [scale * cell.mean for cell in cells], sds, **look, markersize=7, capsize=4, elinewidth=1.4)
        for x, cell in zip(xs, cells, strict=True):
            ys = [scale * y for y in cell.values.values()]
            axes.plot([x * 1.02] * len(ys), ys, ".", markersize=5, color=look["color"], alpha=0.6)
    axes.set_xscale("log")
    axes.set_xlim(min(x_of.values()) / 1.35, max(x_of.values()) * 1.35)
    axes.set_xticks(list(x_of.values()), ["all" if b is None else f"{b:,}" for b in x_of])
    axes.xaxis.set_minor_locator(NullLocator())
    what = "labelled training examples" if verdict.unit == "labels" else f"training {verdict.unit}"
    axes.set_xlabel(what + (" (log scale)" if len(x_of) > 1 else ""))
    return figure


def _budget_positions(budgets) -> dict[int | None, float]:
    """Map each budget to its x. The size of "all" is unknown, so it is one step right of the largest budget."""
    positions: dict[int | None, float] = {b: float(max(b, 1)) for b in budgets if b is not None}
    numbers = list(positions.values())
    step = numbers[-1] / numbers[-2] if len(numbers) > 1 else 3.0
    if None in budgets:
        positions[None] = numbers[-1] * step if numbers else 1.0
    return positions


def _cost_quality(verdict, runs) -> Figure:
    """Plot the metric against the time of one run with its pretraining; a line joins a contender's label budgets."""
    figure, axes, cells_of, scale = _frame(verdict)
    for contender, cells in cells_of.items():
        look = _look(verdict, contender)
        dots = [run for run in runs if run.contender == contender and run.status == "ok"]
        ys = [scale * verdict.cell(contender, run.budget).values[run.seed] for run in dots]
        axes.plot([_seconds(run) for run in dots], ys, ".", markersize=5, color=look["color"], alpha=0.6)
        xs, ys = [_seconds(cell) for cell in cells], [scale * cell.mean for cell in cells]
        axes.plot(xs, ys, **look, markersize=8, linewidth=1.0)
        for i in {0, len(cells) - 1} if len(verdict.budgets) > 1 else ():  # label only both ends, to avoid overlap
            text = "all" if cells[i].budget is None else f"{cells[i].budget:,}"
            axes.annotate(text, (xs[i], ys[i]), (8, -11), textcoords="offset points", fontsize=8.5, color=look["color"])
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = low / 1.3, high * 1.5
    axes.set_xlim(low, high)
    ticks = [tick for tick in DURATIONS if low <= tick <= high]
    axes.set_xticks(ticks[:: math.ceil(len(ticks) / 8)] if ticks else [math.sqrt(low * high)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: duration(x).replace(".0 ", " ")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time of one run, the user's own pretraining included (log scale)")
    return figure


def _seconds(timed) -> float:
    return max(timed.wall_time_s + timed.upfront_wall_time_s, 0.1)  # above 0, for the log scale


def _learning_curves(verdict, runs) -> Figure:
    """Plot each run's training loss and, if recorded, evaluation metric; one column per label budget."""
    evaluated = f"eval_{verdict.metric}"
    keys = ["loss", evaluated] if any(evaluated in point for run in runs for point in run.curve) else ["loss"]
    n = len(verdict.budgets)
    figure = Figure(figsize=(max(7.2, 2.7 * n), 1.2 + 2.9 * len(keys)), layout="constrained")
    grid = figure.subplots(len(keys), n, squeeze=False, sharey="row")
    for row, key in zip(grid, keys, strict=True):
        scale = 1 if key == "loss" else wording.scale(verdict.metric)
        row[0].set_ylabel("training loss" if key == "loss" else f"evaluation {wording.title(verdict.metric)}")
        for axes, budget in zip(row, verdict.budgets, strict=True):
            curves = [
                (run, [(point["step"], scale * point[key]) for point in run.curve if key in point])
                for run in runs
                if run.budget == budget
            ]
            for run, points in curves:
                if points:
                    steps, values = zip(*points, strict=True)
                    look = _look(verdict, run.contender) | ({} if run.status == "ok" else {"marker": "x"})
                    line = "-" if run.status == "ok" else ":"
                    axes.plot(steps, values, linestyle=line, **look, linewidth=1.2, markersize=5, markevery=[-1])
            if not any(points for _, points in curves):
                _note(axes, "no curve was recorded")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes, budget in zip(grid[0], verdict.budgets, strict=True):
        axes.set_title(wording.labels(budget, verdict.unit) if verdict.unit else "", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("optimizer step")
    _legend(figure, verdict, [name for name in verdict.contenders if any(r.curve for r in runs if r.contender == name)])
    return figure


def _tuning(verdict, tuning) -> Figure:
    """A panel a label budget: the expected best validation score by the number of trials, a line a contender."""
    n = len(verdict.budgets)
    figure = Figure(figsize=(max(7.2, 2.7 * n), 4.1), layout="constrained")
    panels = figure.subplots(1, n, squeeze=False, sharey=True)[0]
    panels[0].set_ylabel(f"expected best validation {wording.title(tuning[0].metric)}")
    for axes, budget in zip(panels, verdict.budgets, strict=True):
        for each in tuning:
            if each.budget == budget and each.expected:
                ys = [wording.scale(each.metric) * y for y in each.expected]
                axes.plot(range(1, len(ys) + 1), ys, **_look(verdict, each.contender), markersize=6)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("trials")
        axes.set_title(wording.labels(budget, verdict.unit) if verdict.unit else "", fontsize=10)
    _legend(figure, verdict, [name for name in verdict.contenders if any(t.contender == name for t in tuning)])
    return figure
