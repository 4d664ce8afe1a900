"""Draw what explain found as PNG or SVG files, byte-equal for equal input. Text in an SVG stays text."""

import io
import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize, PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure

from decero.explain.phrases import phrases
from decero.explain.recording import Attention
from decero.explain.views import Bars, Curves, Drawing, Heatmap, Panel, Table, labels, printable

KINDS = ("png", "svg")
DPI = 300
MOST_LABELS = 128  # tokens on an axis that all have their label; with more, each k-th has one
MOST_BARS = 60
BLUES = LinearSegmentedColormap.from_list("decero", ["#ffffff", "#dbe9f6", "#9ac8e0", "#4a90c2", "#1b5a9c", "#08264f"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#1b5a9c", "#8fbfdd", "#f7f7f7", "#f0a582", "#b2182b"])
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito 2008
# DejaVu comes with matplotlib; the others are taken where they are installed, for scripts that it lacks.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Emoji")
STYLE = {
    "font.size": 8,
    "text.parse_math": False,  # a token may be a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "decero",
    "axes.linewidth": 0.5,
}


def draw_head(attention: Attention, layer: int, head: int, language: str = "en") -> Figure:
    """Draw one head: queries on the rows, keys on the columns."""
    w = phrases(language)
    return draw_panel(
        Heatmap(
            w["layer_head"].format(layer=layer, head=head), values=attention.weights[layer][head], scale="weights",
            rows=labels(attention.queries), columns=labels(attention.keys), row_title=w["query"], column_title=w["key"],
            notes=[w[attention.kind]],
        ),
        language,
    )  # fmt: skip


def draw_heads(attention: Attention, layers: Sequence[int], language: str = "en") -> Figure:
    """Draw every head of some layers, small and without tokens. The colours of each head end at its largest weight."""
    w = phrases(language)
    heads = attention.num_heads
    across = heads if len(layers) > 1 else min(heads, 6)
    down = len(layers) * -(-heads // across)
    shape = len(attention.queries) / max(1, len(attention.keys))
    side = 1.7 if len(layers) == 1 else 0.75
    with style():
        tall = side * min(2, max(0.5, shape)) + (0.2 if len(layers) == 1 else 0.05)
        figure = Figure(figsize=(0.5 + side * across, 0.6 + tall * down), layout="constrained")
        for place, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
            axes.set(xticks=[], yticks=[])
            if place >= heads * len(layers):
                axes.set_axis_off()
                continue
            layer, head = (layers[0], place) if len(layers) == 1 else (layers[place // heads], place % heads)
            _image(axes, attention.weights[layer][head], "weights")
            if len(layers) == 1:
                axes.set_title(f"{w['head']} {head}", fontsize=7, pad=2)
                continue
            if head == 0:
                axes.set_ylabel(str(layer), rotation=0, ha="right", va="center", fontsize=7)
            if place < heads:
                axes.set_title(str(head), fontsize=7, pad=2)
        one = f"{w['layer']} {layers[0]}"
        figure.suptitle(f"{one if len(layers) == 1 else w['overview']} · {w[attention.kind]}", fontsize=9)
        if len(layers) > 1:
            figure.supylabel(w["layer"], fontsize=8)
        figure.supxlabel(f"{w['head']} · {w['scale_sqrt']}", fontsize=7)
    return figure


def draw_panel(panel: Panel, language: str = "en") -> Figure:
    """Draw a heat map, bars, curves, a table or a passage (as bars)."""
    with style():
        if isinstance(panel, Drawing):
            return panel.figure
        if isinstance(panel, Heatmap):
            return _heat_map(panel, language)
        if isinstance(panel, Curves):
            return _curves(panel)
        if isinstance(panel, Table):
            return _table(panel)
        return _bars(panel if isinstance(panel, Bars) else Bars(panel.title, panel.tokens, panel.scores))


def render(figure: Figure, kind: str) -> bytes:
    """Render a figure as `png`, 300 dots an inch, or `svg`. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        figure.savefig(buffer, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()


@contextmanager
def style():
    """Use this style and ignore the user's matplotlibrc."""
    there = set(font_manager.get_font_names())
    settings: dict = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(settings | STYLE | {"font.family": [name for name in FONTS if name in there]}):
        yield


def _colours(values: np.ndarray, scale: str) -> tuple[Colormap, Normalize]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if scale == "weights":
        return BLUES, PowerNorm(0.5, 0, high or 1)
    if scale == "signed":
        most = max(abs(low), abs(high)) or 1
        return SIGNED, TwoSlopeNorm(0, -most, most)
    if scale == "logs":
        return BLUES, LogNorm(low, high if high > low else 2 * low)
    return BLUES, Normalize(low, high if high > low else low + 1)


def _image(axes, values: np.ndarray, scale: str):
    colours, norm = _colours(values, scale)
    # "none": an SVG keeps a pixel a cell, and a PNG is not smoothed.
    return axes.imshow(values, cmap=colours, norm=norm, interpolation="none", aspect="auto")


def _heat_map(panel: Heatmap, language: str) -> Figure:
    values = np.asarray(panel.values, np.float64)
    rows, columns = values.shape
    square = rows == columns
    cell = 0.16 if max(rows, columns) <= MOST_LABELS else 0.16 * MOST_LABELS / max(rows, columns)
    tall, wide = (0.2, 0.62) if panel.texts else (cell, cell) if square else (max(cell, 0.2), max(cell, 0.2))
    if not panel.texts:  # few cells are drawn larger
        grow = max(1.0, 2.2 / (wide * columns), 0 if not square else 2.2 / (tall * rows))
        wide, tall = wide * grow, tall * (grow if square else min(grow, 1.5))
    margin = 0.3 + 0.06 * max((len(name) for name in panel.rows), default=0)
    beneath = 0.3 + 0.06 * max((len(name) for name in panel.columns), default=0)
    size = (margin + wide * columns + 0.9, beneath + tall * rows + 0.5)
    figure = Figure(figsize=(max(size[0], 3.2), max(size[1], 1.8)), layout="constrained")
    axes = figure.subplots()
    image = _image(axes, values, panel.scale)
    _ticks(axes, panel.rows, panel.columns, upright=max((len(name) for name in panel.columns), default=0) * 0.07 > wide)
    said = f" · {panel.notes[0]}" if panel.scale == "weights" and panel.notes else ""
    axes.set_title(printable(panel.title) + said, fontsize=9, loc="left")
    axes.set_ylabel(panel.row_title)
    axes.set_xlabel(panel.column_title)
    for name in ("top", "right", "left", "bottom"):
        axes.spines[name].set_color("#bbbbbb")
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 1.6 / (tall * rows)), aspect=15, pad=0.02)
    if panel.scale == "logs":
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter("")
    bar.outline.set_linewidth(0.3)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=6, width=0.4, length=2)
    if panel.texts:
        _write_cells(axes, panel, values, image)
    return figure


def _write_cells(axes, panel: Heatmap, values: np.ndarray, image) -> None:
    assert panel.texts is not None
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = printable(panel.texts[i][j])
        text = text if len(text) <= 9 else f"{text[:8]}…"
        axes.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if dark else "#1c2128")


def _ticks(axes, rows: Sequence[str], columns: Sequence[str], upright: bool) -> None:
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = 1 if len(names) <= MOST_LABELS else -(-len(names) // MOST_LABELS)
        axis.set_ticks(range(0, len(names), step), [_short(name) for name in names[::step]])
    axes.tick_params(length=0, pad=2, labelsize=7)
    if upright:
        axes.tick_params(axis="x", labelrotation=90)


def _short(name: str, most: int = 24) -> str:
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _bars(panel: Bars) -> Figure:
    """Draw the bars; of many, those that are largest in size, in their order."""
    values = np.asarray(panel.values, np.float64)
    chosen = np.sort(np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")[:MOST_BARS])
    names = [_short(panel.names[i]) for i in chosen]
    figure = Figure(figsize=(5, 0.7 + 0.19 * len(chosen)), layout="constrained")
    axes = figure.subplots()
    shown = values[chosen]
    axes.barh(range(len(chosen)), shown, color=np.where(shown >= 0, "#d1603d", "#1b5a9c"), height=0.72)
    if panel.low is not None and panel.high is not None:
        ends = np.abs(np.array([np.asarray(panel.low)[chosen], np.asarray(panel.high)[chosen]], np.float64) - shown)
        axes.errorbar(shown, range(len(chosen)), xerr=ends, fmt="none", ecolor="#1c2128", elinewidth=0.8, capsize=2)
    axes.set_yticks(range(len(chosen)), names)
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    axes.axvline(0, color="#59636e", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(printable(panel.title), fontsize=9, loc="left")
    return figure


def _curves(panel: Curves) -> Figure:
    figure = Figure(figsize=(5.2, 3), layout="constrained")
    axes = figure.subplots()
    for i, (name, values) in enumerate(zip(panel.names, panel.values, strict=True)):
        axes.plot(panel.points, values, COLOURS[i % len(COLOURS)], label=_short(name, 70), linewidth=1.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(panel.x_title)
    axes.set_ylabel(panel.y_title)
    axes.set_title(printable(panel.title), fontsize=9, loc="left")
    figure.legend(loc="outside lower left", frameon=False, fontsize=7)
    return figure


def _table(panel: Table) -> Figure:
    rows = [[cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.3f}" for cell in row]
            for row in panel.rows]  # fmt: skip
    figure = Figure(figsize=(1.3 * len(panel.columns), 0.6 + 0.22 * (len(rows) + 1)), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(printable(panel.title), fontsize=9, loc="left")
    table = axes.table([[_short(cell) for cell in row] for row in rows], colLabels=list(panel.columns), loc="center",
                       edges="horizontal")  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    return figure
