"""Write what explain found as one HTML file that needs no network, no library and no other file."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from decero.explain import tiles
from decero.explain.notes import in_language
from decero.explain.phrases import phrases
from decero.explain.pictures import draw_panel, render
from decero.explain.recording import Attention, Recording
from decero.explain.rollout import sinks_of
from decero.explain.views import Bars, Curves, Drawing, Heatmap, Panel, Passage, Table, View, labels, printable

FOLDER = Path(__file__).parent
TILED = 64**2  # cells from which a matrix of weights is stored as a tile; smaller ones keep their numbers


@dataclass(frozen=True)
class Line:
    """A line of the index: where its page is, its text, and how many tokens it has."""

    href: str
    text: str
    tokens: int


def page(
    recording: Recording, views: Sequence[View], *, faithfulness: Sequence[str] = (), language: str = "en",
    in_index: bool = False, start: tuple[str, int, int] | None = None,
) -> str:  # fmt: skip
    """Return the page of one text.

    recording: its attentions are drawn under the view named `attention`, if there is one.
    views: the chapters, in order. faithfulness: sentences below the attention of all heads.
    in_index: link to index.html beside the page. start: kind, layer and head that are open at first.
    language: `en` or `es`.
    """
    w = phrases(language)
    maps: list[dict[str, Any]] = []
    chapters = [
        {**{name: getattr(view, name) for name in ("name", "title", "about", "caution")},
         "panels": [_panel(panel, maps) for panel in view.panels]}
        for view in views
    ]  # fmt: skip
    drawn = any(view.name == "attention" for view in views)
    attentions = [_attention(each) for each in recording.attentions.values() if each.weights] if drawn else []
    facts = [(w["family"], recording.family), (w["picture" if recording.picture else "text"], _shown(recording.text))]
    if recording.text_b is not None:
        facts.append((w["text_b"], _shown(recording.text_b)))
    if recording.target is not None:
        facts.append((w["target"], _shown(recording.target)))
    facts += [
        (w["size"], w["sizes"].format(layers=each.num_layers, heads=each.num_heads, tokens=len(each.keys)))
        for each in list(recording.attentions.values())[:1]
    ]
    return _render(
        language,
        heading=w["title"].format(model=printable(recording.model)),
        facts=facts,
        remarks=[in_language(note, language) for note in recording.notes],
        views=chapters,
        faithfulness=faithfulness,
        back=in_index,
        lines=[],
        data={"words": w, "attention": attentions, "maps": maps, "start": start},
    )


def index_page(model: str, lines: Sequence[Line], language: str = "en") -> str:
    """Return the page that lists the pages of all lines of a file."""
    w = phrases(language)
    heading = w["index_title"].format(model=printable(model), count=len(lines))
    return _render(
        language, heading=heading, lines=[asdict(line) | {"text": _shown(line.text)} for line in lines], views=[]
    )


def _render(language: str, **parts: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("page.html.jinja").render(language=language, w=phrases(language), **parts)


def _shown(text: str) -> str:
    """Return a text without control characters; line ends and tabs stay."""
    return "".join(sign if sign in "\n\t" else printable(sign) for sign in text)


def _attention(attention: Attention) -> dict[str, Any]:
    layers = sorted(attention.weights)
    stored = [tiles.encode(attention.weights[layer]) for layer in layers]
    return {
        "kind": attention.kind,
        "queries": labels(attention.queries),
        "keys": labels(attention.keys),
        "special": [i for i, piece in enumerate(attention.keys) if piece.special],
        "sinks": sinks_of(attention),
        "layers": layers,
        "heads": attention.num_heads,
        "across": stored[0][1],
        "tiles": [uri for uri, _ in stored],
    }


def _panel(panel: Panel, maps: list[dict[str, Any]]) -> dict[str, Any]:
    shared = {"kind": type(panel).__name__, "title": panel.title, "notes": panel.notes}
    if isinstance(panel, Heatmap):
        maps.append(_map(panel))
        return shared | {"number": len(maps) - 1}
    if isinstance(panel, Bars):
        return shared | _bars(panel)
    if isinstance(panel, Curves | Drawing):
        svg = base64.b64encode(render(draw_panel(panel), "svg")).decode()
        names = panel.names if isinstance(panel, Curves) else []
        return shared | {"kind": "Curves", "uri": f"data:image/svg+xml;base64,{svg}", "names": names}
    if isinstance(panel, Table):
        rows = [[{"value": _written(cell), "text": isinstance(cell, str)} for cell in row] for row in panel.rows]
        return shared | {"columns": panel.columns, "rows": rows}
    return shared | {"tokens": _tokens(panel)}


def _map(panel: Heatmap) -> dict[str, Any]:
    values = np.asarray(panel.values, np.float64)
    tiled = panel.scale == "weights" and values.size >= TILED and not np.isnan(values).any()
    return {
        "title": panel.title,
        "rows": [printable(name) for name in panel.rows],
        "columns": [printable(name) for name in panel.columns],
        "rowTitle": panel.row_title,
        "columnTitle": panel.column_title,
        "scale": panel.scale,
        "texts": panel.texts and [[printable(text) for text in row] for row in panel.texts],
        "tile": tiles.encode(values[None])[0] if tiled else None,
        "values": None if tiled else [_rounded(value) for value in values.ravel().tolist()],
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _bars(panel: Bars) -> dict[str, Any]:
    """Return the bars with their ends as percentages of the width of the picture."""
    ends = [value for row in (panel.values, panel.low or (), panel.high or ()) for value in row if np.isfinite(value)]
    least, most = min([0.0, *ends]), max([0.0, *ends])

    def at(value: float) -> float:
        return round(100 * (value - least) / ((most - least) or 1), 2)

    bars = []
    for i, (name, value) in enumerate(zip(panel.names, panel.values, strict=True)):
        low, high = (None, None) if panel.low is None or panel.high is None else (panel.low[i], panel.high[i])
        interval = "" if low is None or high is None else f"[{_written(low)}, {_written(high)}]"
        start, end = sorted((at(0), at(value if np.isfinite(value) else 0)))
        bars.append({
            "name": printable(name), "value": _written(value), "interval": interval,
            "sign": "rise" if value >= 0 else "fall",
            "start": start, "width": round(end - start, 2), "low": None if low is None else at(low),
            "high": None if high is None else at(high),
        })  # fmt: skip
    return {"bars": bars, "zero": at(0)}


def _tokens(panel: Passage) -> list[dict[str, Any]]:
    largest = max((abs(score) for score in panel.scores), default=0) or 1
    return [
        {"text": printable(text), "score": _written(score), "sign": "rise" if score >= 0 else "fall",
         "strength": round(75 * abs(score) / largest)}
        for text, score in zip(panel.tokens, panel.scores, strict=True)
    ]  # fmt: skip


def _written(cell: str | float) -> str:
    if isinstance(cell, str):
        return printable(cell)
    return f"{cell:,}" if isinstance(cell, int) else "–" if not np.isfinite(cell) else f"{cell:.3f}"
