"""Compute time and memory of runs on accelerators, and compare them with published figures.

Models are built on the meta device, which has no memory, so a model of any size can be computed on a laptop.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedModel

from decero.benchmark.summary import table_row
from decero.benchmark.workloads import AUTO_CLASSES
from decero.config.scale import ScaleRun
from decero.config.sections import OptimSection
from decero.data.sizes import BatchSize
from decero.errors import UserError
from decero.execution.build import read_preset
from decero.execution.linear_cross_entropy import items_at_once
from decero.execution.transformers_internals import StrictDataclassError
from decero.formatting import byte_size
from decero.planning.cost import (
    FusedAttention,
    SavedActivations,
    flops,
    logits_bytes,
    seconds_on,
    static_memory,
    width_of,
)
from decero.training.runs import Run

SAMPLE, NARROWEST = 512, 256  # tokens and width of the forward passes whose saved tensors are counted
COLUMNS = (
    "run", "devices", "parameters", "tokens/s of a device", "published", "published / forecast", "memory of a device",
    "published",
)  # fmt: skip
LEGEND = (
    "Tokens that one device reads in a second. Memory: weights in fp32, gradients, AdamW, activations, logits. With "
    "shards, one whole copy of the weights is included. Communication is not included. *: the forecast was not fitted "
    "to this run."
)


def scale_runs(run: Run) -> dict[str, Any]:
    """Compute all runs; write scale.md. Returns the content of result.json."""
    rows = {}
    with tqdm(run.config.forecasts().items(), unit="run", dynamic_ncols=True) as bar:
        for name, work in bar:
            bar.set_description(name)
            rows[name] = computed(name, work, run.seed)
    table = scale_table(rows)
    (run.output / "scale.md").write_text(f"{table}\n", encoding="utf-8")
    metric = {name: row["ratio"] for name, row in rows.items() if row["ratio"] is not None}
    notes = [f"{run.output}/scale.md"]
    return {"metric": metric, "table": table, "rows": rows, "seed": run.seed, "notes": notes}


def computed(name: str, work: ScaleRun, seed: int) -> dict[str, Any]:
    """Return the facts of a run: parameters, seconds of a step, tokens per second, memory of a device in bytes."""
    model = _build(name, work)
    if work.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    static, load = static_memory(model, OptimSection()), load_of(work, work.rows)
    step_flops = flops(model, load)
    device, devices = work.accelerator, work.devices
    seconds = seconds_on(device, devices, "bf16", width_of(model), step_flops, static, work.sharded)
    tokens = work.rows * work.length / seconds / devices
    held = static.sharded(devices) if work.sharded else static
    micro = load_of(work, min(work.micro_rows, max(1, work.rows // devices)))
    memory = held.total + activations(name, work, micro, seed)
    memory += logits_bytes(model, micro, items_at_once(torch.device("cuda")))
    return {
        "parameters": model.num_parameters(), "flops": step_flops, "step_s": seconds, "tokens_per_s": tokens,
        "published": work.tokens_per_s, "ratio": work.tokens_per_s and work.tokens_per_s / tokens, "memory": memory,
        "published_memory": work.memory_gb and 1e9 * work.memory_gb, "device": device.name, "devices": devices,
        "fits": memory < device.memory, "source": work.source, "fitted": work.fitted,
    }  # fmt: skip


def activations(name: str, work: ScaleRun, micro: BatchSize, seed: int) -> float:
    """Return the bytes that a micro-batch saves for the backward pass.

    Counted in forward passes of one and of two layers, in bf16, and extrapolated to all layers and tokens. The layers
    are narrower by a whole number of heads, because what a token saves grows with the width. With checkpointing, each
    layer keeps its input, and one layer at a time is whole.
    """
    torch.manual_seed(seed)
    depth = _config(name, work).num_hidden_layers
    one, two = (_saved(name, work, layers, False) for layers in (1, 2))
    layer = two - one
    if work.gradient_checkpointing:
        one_kept, two_kept = (_saved(name, work, layers, True) for layers in (1, 2))
        whole = one_kept + (depth - 1) * (two_kept - one_kept) + layer
    else:
        whole = one + (depth - 1) * layer
    return whole * micro.places


def _saved(name: str, work: ScaleRun, layers: int, checkpointing: bool) -> float:
    """Return the bytes that a model of so many layers saves, per token that it reads."""
    config = _config(name, work)
    heads = math.gcd(config.num_attention_heads, getattr(config, "num_key_value_heads", None) or 0)
    parts = max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or config.hidden_size // n >= NARROWEST))
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    changes = {key: getattr(config, key) // parts for key in sizes if getattr(config, key, None)}
    ids = {"vocab_size": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    kinds = getattr(config, "layer_types", None)
    changes |= ids | {"num_hidden_layers": layers} | ({"layer_types": kinds[:layers]} if kinds else {})
    config = AutoConfig.for_model(**(config.to_dict() | changes))
    model = AutoModel.from_config(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    length, counted = min(work.length, SAMPLE), []
    for rows in (1, 2):  # the difference leaves out the copies of weights in bf16, which do not grow with the tokens
        batch = {"input_ids": torch.randint(5, 1024, (rows, length))}
        if work.kind == "seq2seq":
            written = max(1, work.written * length // work.length)
            batch["decoder_input_ids"] = torch.randint(5, 1024, (rows, written))
        with torch.autocast("cpu", torch.bfloat16), FusedAttention(), SavedActivations(model) as saved:
            model(**batch) if work.kind == "mlm" else model(**batch, use_cache=False)
        counted.append(saved.bytes)
    return parts * (counted[1] - counted[0]) / length


def _build(name: str, work: ScaleRun) -> PreTrainedModel:
    with torch.device("meta"):
        return AUTO_CLASSES[work.kind].from_config(_config(name, work))


def _config(name: str, work: ScaleRun) -> Any:
    try:
        return read_preset(work.model.config, work.model.overrides)
    except (StrictDataclassError, ValueError, KeyError, ArithmeticError) as error:
        raise UserError(f"scale.{name}: {work.model.config}: {' '.join(str(error).split())[:300]}") from error
    except UserError as error:
        raise UserError(f"scale.{name}: {error}") from error


def load_of(work: ScaleRun, rows: int) -> BatchSize:
    """Return the size of a batch of so many full rows."""
    places, written = float(rows * work.length), float(rows * work.written)
    scored = written if work.kind == "seq2seq" else places * work.scored
    return BatchSize(
        rows, places + written, scored, places, places * work.length,
        written, written * work.written, written * work.length,
    )  # fmt: skip


def scale_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table, a row for each run, and how far published and computed speeds are apart."""
    lines = [table_row(COLUMNS), "|:--|" + "--:|" * (len(COLUMNS) - 1)]
    for name, row in rows.items():
        published = "–" if row["published"] is None else f"{row['published']:,.0f}"
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            table_row([
                name if row["fitted"] else f"{name} *", f"{row['devices']} x {row['device']}",
                f"{row['parameters'] / 1e6:,.0f} M", f"{row['tokens_per_s']:,.0f}", published, ratio,
                byte_size(row["memory"]) + ("" if row["fits"] else ", does not fit"),
                byte_size(row["published_memory"]) if row["published_memory"] else "–",
            ])
        )  # fmt: skip
    lines += ["", LEGEND]
    for fitted, which in ((True, "fitted to"), (False, "not fitted to")):
        ratios = [row["ratio"] for row in rows.values() if row["ratio"] is not None and row["fitted"] is fitted]
        if ratios:
            near = sum(1 / 1.25 <= ratio <= 1.25 for ratio in ratios)
            lines.append(
                f"Runs that the forecast was {which}: {near} of {len(ratios)} within a factor of 1.25; geometric mean "
                f"{np.exp(np.mean(np.log(ratios))):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}."
            )
    return "\n".join(lines)
