"""Draw bias probes: a line a category, with the intervals of the model and of its controls."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from decero.evaluation.figures import COLOURS, style

LINES = (  # part, key, label, colour, marker, shift up
    ("plain", "share", "model", COLOURS[0], "o", 0.27),
    ("corrected", "share", "model, corrected for priors", COLOURS[1], "s", 0.09),
    ("plain", "random", "control: random weights", "#8A8A8A", "D", -0.09),
    ("plain", "unigram", "control: unigram", "#B9B9B9", "v", -0.27),
)


def bias_picture(entries: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw the shares of `bias_table`. A hollow marker has no verdict: a control failed."""
    with style():
        figure = Figure(figsize=(8.4, 1.9 + 0.52 * len(entries)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(50, color="#444444", linewidth=1)
        for row, each in enumerate(entries):
            for part, key, _, colour, marker, shift in LINES:
                value, low, high = each[part][key]
                if value is None:
                    continue
                reach = [[100 * max(0.0, value - low)], [100 * max(0.0, high - value)]]
                hollow = key == "share" and each[part]["verdict"].startswith("no verdict")
                axes.errorbar(
                    [100 * value], [-row + shift], xerr=reach, color=colour, marker=marker, markersize=6, linewidth=1.6,
                    capsize=0, markerfacecolor="white" if hollow else colour,
                )  # fmt: skip
        axes.set_yticks(
            [-row for row in range(len(entries))],
            [f"{each['set']}: {each['category']}".replace("$", r"\$") for each in entries],
        )
        axes.set_xlim(-2, 102)
        axes.set_ylim(-len(entries) + 0.45, 0.55)
        axes.grid(axis="y", visible=False)
        for row in range(1, len(entries)):
            axes.axhline(0.5 - row, color="#EEEEEE", linewidth=0.8)
        axes.set_xlabel("toward the stereotype, % of probes\n(50: no preference; hollow: a control failed)")
        axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=11)
        handles = [Line2D([], [], color=colour, marker=marker, label=label) for _, _, label, colour, marker, _ in LINES]
        figure.legend(handles=handles, loc="outside lower center", ncol=2)
        return figure
