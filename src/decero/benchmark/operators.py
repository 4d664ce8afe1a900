"""Say where the time of a training step goes, by kind of operator, and how far it is from the machine's peak."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm.auto import tqdm

from decero.benchmark.arms import Arm, build_arms
from decero.benchmark.batches import FORMULA, make_texts
from decero.benchmark.measure import matmul_peak, synchronize, timed
from decero.benchmark.summary import table_row
from decero.benchmark.workloads import build_pair
from decero.config.benchmark import Workload
from decero.evaluation.figures import COLOURS, render, style
from decero.training.records import write_json
from decero.training.runs import Run

PRODUCTS, ATTENTION, REST = "matrix products", "attention kernels", "Python and other"
EMBEDDINGS = "embeddings and their gradient"
# Kind -> operators of torch, as the profiler names them; the first kind that has the name counts.
KINDS: dict[str, tuple[str, ...]] = {
    PRODUCTS: (
        "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "dot", "mkldnn_linear", "mkldnn_convolution",
        "convolution_backward",
    ),
    ATTENTION: ("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention", "flex_"),
    "softmax": ("_softmax", "_safe_softmax", "_masked_softmax"),
    "loss": ("_log_softmax", "nll_loss", "_cross_entropy", "_LinearCrossEntropy", "exp_", "logsumexp", "scatter_"),
    "norms": ("native_layer_norm", "native_group_norm", "_fused_rms_norm", "rsqrt", "var_mean"),
    "dropout": ("native_dropout", "bernoulli", "random_", "rand", "uniform_"),
    "activations": ("gelu", "silu", "relu", "threshold_backward", "tanh", "sigmoid", "glu"),
    EMBEDDINGS: ("embedding",),
    "selecting": ("index", "gather", "nonzero", "scatter", "take", "masked_select", "_unique", "sort", "argsort"),
    "copies and casts": (
        "copy_", "_to_copy", "clone", "cat", "stack", "fill_", "zero_", "zeros", "ones", "constant_pad", "empty",
        "masked_fill", "resize",
    ),
    "sums, means, products": (
        "add", "sub", "mul", "div", "neg", "pow", "sqrt", "sum", "mean", "cumsum", "where", "rsub", "abs", "max", "min",
        "eq", "ne", "lt", "gt", "le", "ge", "bitwise", "logical", "any", "all", "arange", "sin", "cos", "clamp",
        "linalg_vector_norm", "_local_scalar", "isfinite", "isnan", "reciprocal", "tril", "log", "exp",
    ),
}  # fmt: skip
OPTIMIZER, CLIPPING, MAKING = "optimizer", "clipping gradients", "making batches"
EVERY = (*KINDS, OPTIMIZER, CLIPPING, MAKING, REST)
LEGEND = (
    "Shares of the time of a step, by the profiler. Of the peak: useful FLOPs a second over the fastest matrix product "
    "of that type here; products alone: the same, if the rest took no time. Optimizer, clipping and making batches "
    "include their own operators. A profiled step is slower than a timed one: the last share grows by it."
)


def kind_of(operator: str) -> str:
    """Return the kind of an operator of torch by its name, such as `aten::addmm`."""
    if "EmbeddingBackward" in operator:  # where autograd scatters the gradient itself
        return EMBEDDINGS
    name = operator.rpartition("::")[2]
    exact = {"mm", "mv", "dot", "add", "sub", "all", "any", "max", "min", "eq", "ne", "lt", "gt", "le", "ge", "exp_"}
    for kind, names in KINDS.items():
        if any(name == each or (each not in exact and name.startswith(each)) for each in names):
            return kind
    if name.rstrip("_") in exact:
        return "sums, means, products"
    return REST


def profile_works(run: Run, works: Mapping[str, Workload], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Profile the steps of every workload; write profile.md, profile.png and profile.svg.

    found: facts of the workloads, from `describe`. Returns the content of result.json. Each finished row is saved to
    profiles/, so a stopped run continues after its last row.
    """
    os.environ["KINETO_LOG_LEVEL"] = "99"  # silence the profiler
    settings, device, folder = run.config.profile, run.accelerator.device, run.output / "profiles"
    rows: dict[str, dict[str, Any]] = {}
    peaks: dict[str, float] | None = None
    bar = tqdm(total=len(works) * len(settings.arms), unit="row", dynamic_ncols=True)
    with bar:
        for name, work in works.items():
            for arm in settings.arms:
                bar.set_description(f"{name}, {arm}")
                path = folder / f"{name}, {arm}.json"
                if path.is_file():
                    row = json.loads(path.read_text(encoding="utf-8"))
                    peaks = row["peaks"]
                else:
                    peaks = peaks or matmul_peak(device)
                    row = profiled(name, work, arm, device, run.seed, settings.steps, found[name]["flops"]) | {
                        "peaks": peaks
                    }
                    path.parent.mkdir(exist_ok=True)
                    write_json(path, row)
                rows[f"{name}, {arm}"] = row
                bar.update()
    assert peaks is not None
    for row in rows.values():
        row["of_peak"] = row["flops"] / row["seconds"] / peaks[row["dtype"]]
        products = row["shares"].get(PRODUCTS, 0.0) + row["shares"].get(ATTENTION, 0.0)
        row["products_of_peak"] = row["of_peak"] / products if products else None
    table = profile_table(rows, peaks)
    (run.output / "profile.md").write_text(f"{table}\n", encoding="utf-8")
    for kind in ("png", "svg"):
        (run.output / f"profile.{kind}").write_bytes(render(stacked(rows), kind))
    return {
        "metric": {name: row["of_peak"] for name, row in rows.items()}, "table": table, "rows": rows,
        "matmul_peak": peaks, "seed": run.seed, "formula": FORMULA,
        "notes": [f"{run.output}/profile.md, {run.output}/profile.png"],
    }  # fmt: skip


def profiled(
    name: str, work: Workload, arm: str, device: torch.device, seed: int, steps: int, flops: float
) -> dict[str, Any]:
    """Time and profile the step of one arm: seconds (median), shares by kind, the slowest operators."""
    pair = build_pair(name, work, seed)
    texts = make_texts(name, work, pair[0].config, seed)
    fp32 = arm in ("stock fp32", "ours fp32")
    built = arm.removesuffix(" fp32") if arm == "ours fp32" else arm
    unit = build_arms(work, pair, texts, device, seed, [built], "no" if fp32 else "bf16")[built]
    del pair
    unit()
    times = [timed(unit, device) for _ in range(steps)]
    shares, slowest = shares_of(unit, steps, device)
    return {
        "seconds": float(np.median(times)), "rounds": times, "flops": flops, "dtype": "fp32" if fp32 else "bf16",
        "shares": shares, "operators": slowest, "says": unit.says,
    }  # fmt: skip


def shares_of(unit: Arm, steps: int, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Profile `steps` units: share of the time by kind, and by operator (those above one in a thousand).

    On a GPU the time of its kernels counts, and what is left is waiting.
    """
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(steps):
            with record_function(MAKING):
                batches = unit.make()
            for batch in batches:
                unit.step(batch)
        synchronize(device)
        total = time.perf_counter() - started
    kinds: dict[str, float] = dict.fromkeys(EVERY, 0.0)
    operators: defaultdict[str, float] = defaultdict(float)
    for event in recorded.events() or ():
        if event.device_type != DeviceType.CPU:  # a kernel of a GPU: its time belongs to the operator that started it
            continue
        spent = 1e-6 * (event.self_device_time_total if cuda else event.self_cpu_time_total)
        kind = _region(event) or kind_of(event.name)
        kinds[kind] += spent
        operators[event.name] += spent
    kinds[REST] += max(0.0, total - sum(kinds.values()))
    whole = sum(kinds.values())
    ordered = sorted(operators.items(), key=lambda pair: -pair[1])
    slowest = {name: spent / whole for name, spent in ordered if spent > whole / 1000}
    return {kind: spent / whole for kind, spent in kinds.items()}, slowest


def _region(event: Any) -> str | None:
    """Return the part of a step that an event is inside: optimizer, clipping, making batches, or None."""
    while event is not None:
        if event.name.startswith("Optimizer.step"):
            return OPTIMIZER
        if event.name in (MAKING, CLIPPING):
            return event.name
        event = event.cpu_parent
    return None


def profile_table(rows: Mapping[str, Mapping[str, Any]], peaks: Mapping[str, float]) -> str:
    """Return a Markdown table: a column for each workload and arm, a row for each kind of operator."""
    lines = [table_row(["", *rows]), "|:--|" + "--:|" * len(rows)]
    lines.append(table_row(["time of a step", *(f"{1e3 * row['seconds']:,.0f} ms" for row in rows.values())]))
    lines.append(table_row(["**of the peak**", *(f"**{row['of_peak']:.0%}**" for row in rows.values())]))
    alone = [row["products_of_peak"] for row in rows.values()]
    lines.append(table_row(["products alone", *("–" if each is None else f"{each:.0%}" for each in alone)]))
    for kind in EVERY:
        shares = [row["shares"].get(kind, 0.0) for row in rows.values()]
        if any(share >= 0.0005 for share in shares):
            lines.append(table_row([kind, *(f"{share:.1%}" for share in shares)]))
    values = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {kind}" for kind, peak in peaks.items())
    return "\n".join([*lines, "", f"Peak: {values}. {LEGEND} {FORMULA}"])


def stacked(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the shares: a bar for each workload and arm."""
    shown = [kind for kind in EVERY if any(row["shares"].get(kind, 0.0) >= 0.005 for row in rows.values())]
    with style():
        figure = Figure(figsize=(8.6, 1.6 + 0.45 * len(rows)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(rows))
        for number, kind in enumerate(shown):
            widths = np.array([100 * row["shares"].get(kind, 0.0) for row in rows.values()])
            colour, hatch = COLOURS[number % len(COLOURS)], ("", "///", "...")[number // len(COLOURS)]
            axes.barh(
                range(len(rows)), widths, 0.8, left=left, color=colour, hatch=hatch, edgecolor="white", label=kind
            )
            left += widths
        names = [f"{name.replace('$', chr(92) + '$')}\n{row['of_peak']:.0%} of the peak" for name, row in rows.items()]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the time of a training step, %")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure
