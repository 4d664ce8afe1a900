"""Tell the result of a race: who reached the loss, in what time, and which candidates are kept."""

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from decero.benchmark.summary import table_row
from decero.config.race import OURS, STOCK, RaceSection
from decero.evaluation.figures import COLOURS, style

LEGEND = (
    "Seconds and reference steps: training until the loss is reached, without evaluations; mean [least, most] over the "
    "seeds. A reference step is a fixed piece of work, timed beside the runs. TFLOP: 6 x tokens x weights without "
    "embeddings. Times as fast: reference steps of stock over those of the row; least is the fastest stock seed over "
    "the slowest of the row. Kept: all seeds reach the loss, and the slowest is faster than the fastest of ours; of "
    "three seeds each, luck alone does so once in twenty."
)
FEWEST_SEEDS = 3  # to keep a candidate: with two seeds each, luck alone separates them once in six
MEASURED = ("seconds", "reference_steps", "tokens", "step", "flops")


def summary(
    race: RaceSection, names: Sequence[str], records: Sequence[Mapping[str, Any]], target: float
) -> dict[str, dict[str, Any]]:
    """Return the result of each name.

    runs, reached: how many. loss: mean at the end. MEASURED: {"mean", "least", "most"} over the runs, None where one
    did not reach the loss. times_as_fast: the same, against stock. kept: of a candidate with enough seeds, else None.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        runs = [dict(record) for record in records if record["name"] == name]
        reached = [record for record in runs if name == STOCK or record["reached"]]
        for record in reached:
            record["flops"] = record["tokens"] * record["flops_per_token"]
        errors = [record["error"] for record in runs if "error" in record]
        losses = [record["loss"] for record in runs if record["loss"] is not None]
        all_reached = len(reached) == len(runs)
        spreads = {key: _spread([record[key] for record in reached]) if all_reached else None for key in MEASURED}
        found[name] = {"runs": len(runs), "reached": len(reached), "error": errors[0] if errors else None, **spreads}
        found[name] |= {"loss": float(np.mean(losses)) if losses else None, "kept": None, "times_as_fast": None}
        if all_reached:
            stock, own = found[STOCK]["reference_steps"], found[name]["reference_steps"]
            found[name]["times_as_fast"] = {
                "mean": stock["mean"] / own["mean"],
                "least": stock["least"] / own["most"],
                "most": stock["most"] / own["least"],
            }
    for name in race.candidates:
        if name in found and found[name]["runs"] >= FEWEST_SEEDS:
            own, ours = found[name]["reference_steps"], found[OURS]["reference_steps"]
            found[name]["kept"] = own is not None and (ours is None or own["most"] < ours["least"])
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "least": float(min(values)), "most": float(max(values))}


def race_table(race: RaceSection, found: Mapping[str, Any], target: float) -> str:
    """Return a Markdown table: a row for stock, each variant, ours, and each candidate."""
    columns = ["", "reached", "loss", "seconds", "reference steps", "tokens", "TFLOP", "times as fast", "kept"]
    lines = [table_row(columns), "|:--|" + "--:|" * (len(columns) - 1)]
    for name, each in found.items():
        reached = "the target" if name == STOCK else f"{each['reached']} of {each['runs']}"
        loss = "–" if each["loss"] is None else f"{each['loss']:.3f}"
        cells = [name, "failed" if each["error"] else reached, loss]
        cells += [_cell(each[key]) for key in ("seconds", "reference_steps")]
        cells += ["–" if each["tokens"] is None else f"{each['tokens']['mean']:,.0f}"]
        cells += ["–" if each["flops"] is None else f"{each['flops']['mean'] / 1e12:.3g}"]
        cells += [_cell(each["times_as_fast"], 2) + _aim(race, name, each["times_as_fast"])]
        undecided = f"{each['runs']} seeds" if name in race.candidates else ""
        lines.append(table_row([*cells, {None: undecided, True: "yes", False: "no"}[each["kept"]]]))
    errors = [f"{name}: {each['error']}" for name, each in found.items() if each["error"]]
    seeds = f"Target: a validation loss of {target:.4f}, the mean of stock over {len(race.seeds)} seeds."
    return "\n".join([*lines, "", seeds, LEGEND, *errors])


def _cell(spread: Mapping[str, float] | None, digits: int | None = None) -> str:
    if spread is None:
        return "–"
    if digits is None:
        digits = 0 if spread["mean"] >= 100 else 1
    mean, least, most = (f"{spread[key]:,.{digits}f}" for key in ("mean", "least", "most"))
    return mean if least == most else f"{mean} [{least}, {most}]"


def _aim(race: RaceSection, name: str, times: Mapping[str, float] | None) -> str:
    if race.at_least is None or name != OURS:
        return ""
    return f" ({'✓' if times and times['mean'] >= race.at_least else '✗'} ≥ {race.at_least:g})"


def record_line(race: RaceSection, found: Mapping[str, Any], commit: str | None) -> str:
    """Return the line for the table of records: date, commit, race, machine, seconds and factor, who won.

    The winner is the fastest of ours and its candidates that are kept.
    """
    fit = [n for n in (OURS, *race.candidates) if n in found and (n == OURS or found[n]["kept"])]
    fit = [name for name in fit if found[name]["times_as_fast"]]
    winner = max(fit, key=lambda name: found[name]["times_as_fast"]["mean"], default=None)
    if winner is None:
        won, times, seconds = "no run reached the loss of stock", "–", "–"
    else:
        changes = race.candidates.get(winner, {})
        won = winner + (f" ({', '.join(f'{key} {value}' for key, value in changes.items())})" if changes else "")
        times, seconds = _cell(found[winner]["times_as_fast"], 1), _cell(found[winner]["seconds"])
    machine = f"{platform.machine()}, {psutil.cpu_count(logical=False) or '?'} cores"
    date = time.strftime("%Y-%m-%d", time.gmtime())
    cells = [date, f"`{(commit or 'unknown')[:7]}`{' dirty' if commit and commit.endswith('dirty') else ''}"]
    return table_row([*cells, race.recipe, machine, _cell(found[STOCK]["seconds"]), seconds, times, won])


def curves(race: RaceSection, records: Sequence[Mapping[str, Any]], target: float) -> Figure:
    """Draw the validation loss against reference steps: a line for each run, and the target."""
    with style():
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(record["name"] for record in records))
        for record in records:
            place = names.index(record["name"])
            points = record["curve"]
            axes.plot(
                [point["reference_steps"] for point in points], [point["loss"] for point in points],
                color=COLOURS[place % len(COLOURS)], linestyle=("-", "--", ":")[place // len(COLOURS) % 3],
                marker="o", markersize=3, label=record["name"] if record["seed"] == race.seeds[0] else None,
            )  # fmt: skip
        axes.axhline(target, color="black", linewidth=1)
        axes.annotate("loss of stock", (1, target), (-2, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right")  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:,g}" if f"{x:e}"[0] in "25" else ""))
        axes.set_xlabel("reference steps of training")
        axes.set_ylabel("validation loss, nats a token")
        figure.legend(loc="outside right upper")
    return figure
