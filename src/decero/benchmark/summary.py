"""Summarise a benchmark: numbers per workload, two Markdown tables, a bar chart."""

from collections.abc import Mapping
from typing import Any, get_args

from matplotlib.figure import Figure

from decero.benchmark.batches import FORMULA
from decero.benchmark.measure import paired_ratios, spread
from decero.config.benchmark import ArmName, Workload
from decero.evaluation.figures import COLOURS, style
from decero.evaluation.tables import escaped

UNITS = {"tokens": "useful_tokens", "pictures": "pictures"}  # what a step reads -> the fact that counts it
OTHERS: list[Any] = [arm for arm in get_args(ArmName) if arm != "ours"]
LEGEND = (
    "How many times faster ours is: median and quartiles of the ratio over the rounds. ✓ or ✗: target reached or "
    "not. Memory: weights, optimizer state and peak of a step, ours over stock fp32."
)


def summarise(
    work: Workload, times: Mapping[str, list[float]], memory: Mapping[str, Any], facts, peaks, sheet=None
) -> dict[str, Any]:
    """Return the part of result.json for one workload.

    facts: result of `describe`. peaks: measured FLOP/s per dtype. sheet: those of the data sheet, if known.
    """
    arms, unit = {}, unit_of(facts)
    for arm, seconds in times.items():
        time = spread(seconds)
        fp32 = not work.bf16 if work.kind == "decode" else arm == "stock fp32" or not work.tricks
        dtype = "fp32" if fp32 else "bf16"
        rate = facts["flops"] / time["median"]
        arms[arm] = {
            "seconds": time,
            "rounds": list(seconds),
            f"{unit}_per_s": facts[UNITS[unit]] / time["median"],
            "peak_fraction": rate / peaks[dtype],
            "mfu": rate / sheet[dtype] if sheet else None,
            "memory": dict(memory[arm]) if arm in memory else None,
        }
    ratios = {arm: paired_ratios(times[arm], times["ours"]) for arm in OTHERS if arm in times}
    shares = {arm: _bytes(memory["ours"]) / _bytes(memory[arm]) for arm in OTHERS if arm in memory and "ours" in memory}
    reached: dict[str, bool] = {
        arm: ratios[arm]["median"] >= least for arm, least in work.at_least.items() if arm in ratios
    }
    if work.memory_at_most is not None and "stock fp32" in shares:
        reached["memory"] = shares["stock fp32"] <= work.memory_at_most
    return {**facts, "kind": work.kind, "arms": arms, "ratios": ratios, "memory_ratios": shares, "reached": reached}


def unit_of(facts: Mapping[str, Any]) -> str:
    """Return what a workload reads: tokens, or pictures."""
    return next(unit for unit, fact in UNITS.items() if fact in facts)


def _bytes(memory: Mapping[str, int]) -> int:
    return memory["held_bytes"] + memory["step_bytes"]


def table_row(cells) -> str:
    return f"| {' | '.join(escaped(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def ratio_table(found: Mapping[str, Any], works: Mapping[str, Workload]) -> str:
    """Return a Markdown table of speedups: one row per workload, one column per other arm."""
    others = [arm for arm in OTHERS if any(arm in result["ratios"] for result in found.values())]
    lines = [table_row(["work", *(f"over {arm}" for arm in others), "memory"]), "|:--|" + "--:|" * (len(others) + 1)]
    for name, result in found.items():
        cells = [name]
        for arm in others:
            if arm not in result["ratios"]:
                cells.append("–")
                continue
            ratio, least = result["ratios"][arm], works[name].at_least.get(arm)
            low, high = ratio["quartiles"]
            target = "" if least is None else f" ({'✓' if result['reached'][arm] else '✗'} ≥ {least:g})"
            cells.append(f"{ratio['median']:.2f} [{low:.2f}, {high:.2f}]{target}")
        share, most = result["memory_ratios"].get("stock fp32"), works[name].memory_at_most
        target = f" ({'✓' if result['reached'].get('memory') else '✗'} ≤ {most:g})" if most and share else ""
        lines.append(table_row([*cells, "–" if share is None else f"{share:.2f}{target}"]))
    return "\n".join([*lines, "", LEGEND])


def arm_table(found: Mapping[str, Any], peaks: Mapping[str, float]) -> str:
    """Return a Markdown table of times and memory: one row per workload and arm."""
    mfu = any(measured.get("mfu") for result in found.values() for measured in result["arms"].values())
    units = dict.fromkeys(UNITS[unit_of(result)].replace("_", " ") for result in found.values())
    columns = [
        "work",
        "arm",
        "time",
        f"{' or '.join(units)}/s",
        "of the matmul peak",
        *(["MFU"] if mfu else []),
        "peak memory",
    ]
    lines = [table_row(columns), "|:--|:--|" + "--:|" * (len(columns) - 2)]
    for name, result in found.items():
        for arm, measured in result["arms"].items():
            time, memory = measured["seconds"], measured["memory"]
            low, high = time["quartiles"]
            cells = [name, arm, f"{1e3 * time['median']:,.0f} ms [{1e3 * low:,.0f}, {1e3 * high:,.0f}]"]
            rate = measured[f"{unit_of(result)}_per_s"]
            cells += [f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}", f"{measured['peak_fraction']:.0%}"]
            cells += [f"{measured['mfu']:.1%}"] if mfu else []
            lines.append(table_row([*cells, "–" if memory is None else f"{_bytes(memory) / 2**20:,.0f} MiB"]))
    values = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {kind}" for kind, peak in peaks.items())
    note = f"Matmul peak: {values}, the fastest square product; each arm is compared with the peak of its dtype."
    note += " MFU: the same, of the peak in the device's data sheet (fp32: TF32)." if mfu else ""
    return "\n".join([*lines, "", f"{note} {FORMULA}"])


def bars(found: Mapping[str, Any]) -> Figure:
    """Draw the speedups: a group of bars per workload, quartiles as whiskers, a line at 1."""
    with style():
        figure = Figure(figsize=(7.2, 1.3 + 0.75 * len(found)), layout="constrained")
        axes = figure.subplots()
        others = [arm for arm in OTHERS if any(arm in result["ratios"] for result in found.values())]
        height = 0.8 / len(others)
        for i, arm in enumerate(others):
            pairs = [(n, f["ratios"][arm]) for n, f in enumerate(found.values()) if arm in f["ratios"]]
            ratios = [ratio for _, ratio in pairs]
            widths = [ratio["median"] for ratio in ratios]
            positions = [number + (i - (len(others) - 1) / 2) * height for number, _ in pairs]
            errors = [
                [ratio["median"] - ratio["quartiles"][0] for ratio in ratios],
                [ratio["quartiles"][1] - ratio["median"] for ratio in ratios],
            ]
            axes.barh(
                positions,
                widths,
                height * 0.92,
                xerr=errors,
                capsize=2,
                color=COLOURS[OTHERS.index(arm)],
                label=f"over {arm}",
            )
        axes.axvline(1, color="black", linewidth=1)
        axes.set_yticks(range(len(found)), [name.replace("$", r"\$") for name in found])
        axes.invert_yaxis()
        axes.set_xlabel("speedup over the other arm, on the same data")
        figure.legend(loc="outside lower center", ncol=len(others))
    return figure


def line_of(name: str, work: Workload, facts: Mapping[str, Any]) -> str:
    """Describe a workload in one line: texts, tokens (or pictures), FLOPs, rounds."""
    steps = f"{work.batches} {'step' if work.batches == 1 else 'steps'}"
    if unit_of(facts) == "pictures":
        read = f"{facts['pictures']:,} pictures in {steps}"
    else:
        read = (
            f"{facts['texts']:,} texts in {steps}, {facts['useful_tokens']:,} tokens "
            f"(stock rows {facts['fill']:.0%} full), {facts['scored']:,} scored"
        )
    return f"{name}: {read}, {facts['flops'] / 1e12:.3g} TFLOP, {work.rounds} rounds"


def parameters_of(arm: str, model) -> str:
    """Return the line of --dry-run with class and parameter count of an arm."""
    return f"    {arm:<12}{type(model).__name__:<48}{sum(p.numel() for p in model.parameters()):>13,} parameters"
