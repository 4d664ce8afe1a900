"""Write the tables and pictures of the long-range experiments."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from decero.benchmark.claims import SMALLEST, Claim, accuracies, mean_interval
from decero.evaluation.figures import COLOURS, MARKERS, style
from decero.evaluation.tables import escaped

SHOWN = 1e-20  # the smallest gradient in a picture; the tables have all
Looks = dict[str, dict[str, Any]]
TITLES = {
    "gradients": "Gradient by distance",
    "speed": "Training speed by length",
    "recall": "Recall (MQAR)",
    "copying": "Selective copying",
    "list_ops": "ListOps",
}


def page(parts: dict[str, Any], claims: list[Claim], device: str) -> str:
    """Return the whole page in Markdown."""
    text = ["# Claims about Transformers, tried here", verdict_table(claims), NOTE]
    for name, part in parts.items():
        text += [f"## {TITLES[name]}", f"![{TITLES[name]}]({name}.svg)", *TABLES[name](part, device)]
    return "\n\n".join(text) + "\n"


NOTE = "Intervals are 95 % over seeds (Student, Welch), of speed the quartiles over the rounds."


def verdict_table(claims: list[Claim]) -> str:
    """Return the claims with their verdicts as a Markdown table."""
    return table(("claim", "verdict", "evidence"), [(c.claim, c.verdict, c.evidence) for c in claims])


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, (":--", *("--:" if len(header) > 3 else ":--" for _ in header[1:])), *rows]
    return "\n".join(
        f"| {' | '.join(escaped(str(cell)).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _gradient_tables(part: dict[str, Any], device: str) -> Iterator[str]:
    for when, words in (("before", "with random weights"), ("after", "after training")):
        rows = []
        for arm, records in part["arms"].items():
            logs_SN = np.log10(np.maximum([record[when] for record in records], SMALLEST))
            rows.append((arm, *(_power(mean) for mean in logs_SN.mean(axis=0))))
        yield f"Gradient of the last output {words}, at each distance: geometric mean over {len(records)} seeds."
        yield table(("arm", *map(str, part["distances"])), rows)


def _power(log: float) -> str:
    return "0" if log <= math.log10(SMALLEST) else f"{10.0**log:.1e}"


def _speed_tables(part: dict[str, Any], device: str) -> Iterator[str]:
    lengths = {length: each["arms"] for length, each in part["lengths"].items()}
    arms = next(iter(lengths.values()))
    yield (
        f"Thousand tokens a second in training steps of {part['batch_tokens']:,} tokens, on {device} with "
        f"{part['threads']} threads: median and quartiles. Below: steps that wait for each other."
    )
    rows = []
    for arm in arms:
        found = [each[arm]["tokens_per_s"] for each in lengths.values()]
        cells = [
            f"{f['median'] / 1e3:.1f} [{f['quartiles'][0] / 1e3:.1f}, {f['quartiles'][1] / 1e3:.1f}]" for f in found
        ]
        rows.append((arm, *cells))
    yield table(("arm", *lengths), rows)
    depths = [(arm, *(_depth(each[arm]["sequential"]) for each in lengths.values())) for arm in arms]
    yield table(("sequential depth", *lengths), depths)


def _depth(steps: int | None) -> str:
    return "–" if steps is None else f"{steps:,}"


def _accuracy_tables(part: dict[str, Any], device: str) -> Iterator[str]:
    rows = []
    for arm, each in part["arms"].items():
        mean, low, high = mean_interval(accuracies(each))
        tried = ", ".join(f"{t['rate']:g}: {t['validation']['accuracy']:.1%}" for t in each["trials"])
        seconds = float(np.median([r["wall_time_s"] for r in each["runs"]]))
        interval = f"{mean:.1%} [{max(0, low):.1%}, {min(1, high):.1%}]"
        rows.append(
            (arm, interval, f"{each['rate']:g}", tried, f"{each['runs'][0]['num_parameters']:,}", f"{seconds:.0f} s")
        )
    rows.append((f"chance: {part['guess']}", f"{part['chance']:.1%}", "", "", "", ""))
    header = ("arm", "test accuracy", "best rate", "validation by rate", "parameters", "median time")
    yield table(header, rows)


TABLES: dict[str, Any] = {"gradients": _gradient_tables, "speed": _speed_tables}
TABLES |= dict.fromkeys(("recall", "copying", "list_ops"), _accuracy_tables)


def draw(name: str, part: dict[str, Any], arms: Sequence[str]) -> Figure:
    """Draw the picture of an experiment. arms: those of all experiments; an arm looks the same in each picture."""
    looks = {arm: _look(place) for place, arm in enumerate(arms)}
    with style():
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        DRAWINGS[name](left, right, part, looks)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncol=min(len(labels), 6))
    return figure


def _look(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 4}


def _draw_gradients(left: Any, right: Any, part: dict[str, Any], looks: Looks) -> None:
    for axes, when, title in ((left, "before", "random weights"), (right, "after", "after training")):
        for arm, records in part["arms"].items():
            values_SN = np.maximum([record[when] for record in records], SMALLEST)
            axes.plot(part["distances"], np.exp(np.log(values_SN).mean(axis=0)), label=arm, **looks[arm])
            low, high = values_SN.min(axis=0), values_SN.max(axis=0)
            axes.fill_between(part["distances"], low, high, color=looks[arm]["color"], alpha=0.15)
        axes.set(xscale="log", yscale="log", xlabel="steps back from the last output", title=title)
        _ticks(axes, part["distances"])
    left.set_ylabel("norm of the gradient")
    lowest = max(SHOWN, min(axes.get_ylim()[0] for axes in (left, right)))
    for axes in (left, right):
        axes.set_ylim(bottom=lowest)


def _draw_speed(left: Any, right: Any, part: dict[str, Any], looks: Looks) -> None:
    lengths = [int(length) for length in part["lengths"]]
    measured = [each["arms"] for each in part["lengths"].values()]
    drawn: list[list[int]] = []
    for arm in measured[0]:
        found = [each[arm] for each in measured]
        middle = np.array([f["tokens_per_s"]["median"] for f in found])
        low, high = np.array([f["tokens_per_s"]["quartiles"] for f in found]).T
        left.errorbar(lengths, middle, [middle - low, high - middle], capsize=2, label=arm, **looks[arm])
        if found[0]["sequential"] is not None:
            steps = [f["sequential"] for f in found]
            dashed = (3 * drawn.count(steps), (3, 6)) if steps in drawn else "solid"  # so an equal line below is seen
            right.plot(lengths, steps, linestyle=dashed, linewidth=2.5, **looks[arm])
            drawn.append(steps)
    left.set(xscale="log", yscale="log", xlabel="tokens of a row", ylabel="tokens a second", title="measured here")
    right.set(xscale="log", yscale="log", xlabel="tokens of a row", title="steps that wait for each other")
    for axes in (left, right):
        _ticks(axes, lengths)


def _ticks(axes: Any, places: list[int]) -> None:
    axes.set_xticks(places, [str(place) for place in places])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_accuracy(left: Any, right: Any, part: dict[str, Any], looks: Looks) -> None:
    for place, (arm, each) in enumerate(part["arms"].items()):
        color = looks[arm]["color"]
        for number, run in enumerate(each["runs"]):
            label = arm if number == 0 else None
            left.plot(run["curve"]["step"], run["curve"]["loss"], color=color, label=label, alpha=0.8)
        values = accuracies(each)
        right.bar(place, np.mean(values), 0.7, color=color, alpha=0.5)
        right.plot([place] * len(values), values, "o", color=color, markersize=4)
    left.set(xlabel="step", ylabel="training loss (nats)", title="every seed, at the best rate", ylim=(0, None))
    right.axhline(part["chance"], color="black", linewidth=1, linestyle="--")
    right.annotate("chance", (len(part["arms"]) - 0.5, part["chance"]), ha="right", va="bottom", fontsize=8)
    right.set_xticks(
        range(len(part["arms"])), [arm.replace("$", r"\$") for arm in part["arms"]], rotation=20, ha="right"
    )
    right.set(ylim=(0, 1.03), title="test accuracy")


DRAWINGS: dict[str, Any] = {"gradients": _draw_gradients, "speed": _draw_speed}
DRAWINGS |= dict.fromkeys(("recall", "copying", "list_ops"), _draw_accuracy)
