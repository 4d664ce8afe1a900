"""Implement --dry-run: estimate parameters, FLOPs, memory and time, and say how each was found."""

import os
import textwrap
from contextlib import nullcontext
from dataclasses import dataclass, replace

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from decero.config.devices import Device
from decero.config.sections import TrainingSection
from decero.data.order import RowIndex, Rows
from decero.data.sizes import BatchSize
from decero.data.stream import Stream
from decero.execution.adapters import adapter_of, is_computed
from decero.execution.linear_cross_entropy import items_at_once
from decero.execution.objective import Objective
from decero.execution.transformers_internals import attention_of
from decero.formatting import byte_size, duration
from decero.planning.cost import (
    FORMULA,
    FusedAttention,
    SavedActivations,
    StaticMemory,
    flops,
    logits_bytes,
    picture_flops,
    seconds_on,
    static_memory,
    weight_bytes,
    width_of,
)
from decero.planning.probe import Evaluate, Probe, main_process_value, probe, sample_load, time_evaluation
from decero.training.best_checkpoint import Selection
from decero.training.data_loader import step_loader
from decero.training.memory import peak_memory, release_freed_memory
from decero.training.optimizer import build_optimizer, learning_rate_at
from decero.training.runs import Run

SAMPLE, PICTURES = 2048, 16  # tokens, pictures in the forward pass whose saved tensors are counted


@dataclass(frozen=True)
class Forecast:
    """An estimate. None: unknown.

    memory: bytes per device. step_s: seconds per step. train_s: seconds of training and its evaluations. end_s:
    seconds of the final evaluation.
    """

    parameters: int
    steps: int
    load: BatchSize
    flops: float
    memory: float
    step_s: float | None
    train_s: float | None
    end_s: float | None


def forecast(
    run: Run, model: PreTrainedModel, objective: Objective,
    dataset: Dataset | Stream, held_out: Dataset | None = None, evaluate: Evaluate | None = None,
    score: Evaluate | None = None, first_s: float = 0.0,
) -> Forecast:  # fmt: skip
    """Print what the run would do and cost, on this machine or on `config.call.device`. Writes no files.

    evaluate: the evaluation of the `held_out` rows during training. score: their evaluation at the end.
    first_s: seconds before the first step, such as those of a teacher. Do not use `model` afterwards.
    """
    config, accelerator, training, seed = run.config, run.accelerator, run.training, run.seed
    device = config.call.device
    loader = step_loader(accelerator, dataset, objective, training, seed)
    steps, per_epoch = loader.last, loader.steps_per_epoch
    learning_rate_at(build_optimizer(model, run.optim), run.optim, steps)  # also checks their settings
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if device and attention_of(model) == "matmul":
        model.set_attn_implementation("sdpa")  # the kernel on an accelerator
    load = sample_load(run, dataset, objective)
    per_text, static = bool(objective.per_text), static_memory(model, run.optim)
    pictures = objective.unit == "pictures"
    if pictures:
        step_flops = picture_flops(model, objective, dataset) * load.examples
    else:
        step_flops = flops(model, load, per_text, objective.teacher)
    devices = (device and training.num_processes) or accelerator.num_processes
    micro = micro_batch(load, training, devices)
    with FusedAttention() if device else nullcontext():
        activations = saved_activations(accelerator, model, objective, dataset, micro)
    chunk = items_at_once(torch.device("cuda") if device else accelerator.device)
    logits = logits_bytes(model, micro, chunk)
    evaluation_count = evaluations(training, steps, per_epoch) if evaluate and held_out is not None else 0
    parameters = sum(p.numel() for name, p in model.named_parameters() if is_computed(name))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter = f"; {trained:,} of them trained" if adapter_of(model) else ""
    embeddings = sum({id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}.values())

    measured: Probe | None = None
    sharded = run.sharded
    per_device = static.sharded(devices) if sharded else static
    if objective.teacher is not None:
        per_device = replace(per_device, weights=per_device.weights + weight_bytes(objective.teacher))
    needed, free = per_device.total + activations + logits, _free_memory(accelerator)
    step_s = evaluation_s = end_s = None
    if device:
        width, precision = width_of(model), training.mixed_precision
        step_s = seconds_on(device, devices, precision, width, step_flops, static, sharded)
        held_out_tokens = 0 if held_out is None else objective.row_sizes(held_out).mean.sum()
        held_out_steps = float(held_out_tokens) / load.tokens
        evaluation_s = end_s = held_out_steps * step_flops / 3 / devices / device.flops(precision, width)
    elif main_process_value(accelerator, needed < free):
        if evaluate is not None:
            Selection(training, run.output).check_name(evaluate, model)
        measured = probe(run, model, objective, dataset, load)
        size = training.per_device_eval_batch_size
        evaluation_s = 0.0
        if evaluation_count:
            evaluation_s = time_evaluation(accelerator, evaluate, model, objective, held_out, size)
        end_s = time_evaluation(accelerator, score, model, objective, held_out, size)
        step_s = measured.step_s
    peak = peak_memory(accelerator) if measured else needed
    if measured and measured.share < 1:
        peak += activations * (1 - min(1.0, measured.share * load.examples / devices / micro.examples))
    train_s = None if step_s is None else steps * step_s + evaluation_count * (evaluation_s or 0)

    filled = load.tokens / (load.places + load.written_places)
    lengths, streamed = objective.row_sizes(Rows(dataset).dataset).most, isinstance(dataset, Stream)
    time = "unknown: a run that does not fit in memory cannot be timed"
    if train_s is not None and step_s is not None:
        plural = "s" * (evaluation_count != 1)
        during = f" and {evaluation_count:,} evaluation{plural} of {duration(evaluation_s or 0)}"
        during = during if evaluation_count else ""
        after = f"; then {duration(end_s)} for the final evaluation" if end_s else ""
        time = f"{duration(train_s)}: {steps:,} steps of {_exact(step_s)}{during}{after}"
        time += f"; before all this {duration(first_s)} for the teacher's labels" if first_s else ""
        time += _doubt(measured, steps) if measured else ""
    stream = "a stream; its first " if streamed else ""
    lines = {
        "parameters": f"{parameters:,}, {embeddings:,} of them embeddings{adapter}",
        "training rows": f"{stream}{len(lengths):,} of {lengths.mean():.1f} tokens on average",
        "tokens a step": f"{load.tokens:,.0f} in {load.examples:,.0f} rows, {load.scored:,.0f} "
        f"{'texts' if per_text else 'of them'} scored; {filled:.0%} of all positions are not padding",
        "steps": f"{steps:,}" + ("" if streamed else f" ({steps / per_epoch:.2f} epochs)"),
        "FLOPs": f"{step_flops:.3g} a step, {step_flops * steps:.3g} in total",
        "memory": _memory_line(per_device, activations, logits, peak, device, measured is not None, free),
        f"on {devices} devices": _sharding_line(static, devices, sharded) if devices > 1 else "",
        "time": time,
        "found by": "counting: parameters, rows, tokens, steps, and the activations that a forward pass saves",
    }
    sources = _sources(training, device, devices, measured, streamed, width_of(model))[
        pictures:
    ]  # the first is the formula of text
    lines |= {" " * n: line for n, line in enumerate(sources, start=1)}
    accelerator.print(config.to_yaml())
    if pictures:
        lines = {"training pictures": f"{len(lengths):,}", "pictures a step": f"{load.examples:,.0f}"} | {
            name: line for name, line in lines.items() if name not in ("training rows", "tokens a step")
        }
        lines["found by"] = "counting: parameters, pictures, steps, activations, and the FLOPs of a forward pass, x 3"
    for name, line in lines.items():
        if line:
            accelerator.print(textwrap.fill(line, 118, initial_indent=f"{name:<18}", subsequent_indent=" " * 18))
    accelerator.print("dry run: nothing was trained and nothing written")
    return Forecast(parameters, steps, load, step_flops, peak, step_s, train_s, end_s)


def _exact(seconds: float) -> str:
    """Format the time of a step with three digits: `0.853 s`, `12.3 ms`."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def _doubt(measured: Probe, steps: int) -> str:
    """Say how sure a measured time is: steps that differ much, and other programs that use the machine."""
    doubt = ""
    if measured.high_s > 1.5 * measured.low_s:
        low, high = duration(steps * measured.low_s), duration(steps * measured.high_s)
        doubt = f". Not sure: the timed steps differed, so {low} to {high}"
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if load > 1.5 * cores:
        doubt += f". The machine is busy ({load:.0f} programs at work on {cores} cores); alone, the run is faster"
    return doubt


def evaluations(training: TrainingSection, steps: int, steps_per_epoch: float) -> int:
    """Return how often a run evaluates: at its interval and at the end."""
    every = {"steps": training.eval_steps, "epoch": steps_per_epoch}.get(training.eval_strategy)
    return int(-(-steps // every)) if every else 0


def micro_batch(load: BatchSize, training: TrainingSection, devices: int) -> BatchSize:
    """Return the size of a micro-batch on one device."""
    share = load.examples / devices
    if training.per_device_tokens:
        share = min(share, training.per_device_tokens * load.examples / (load.places + load.written_places))
    elif isinstance(training.per_device_batch_size, int):
        share = min(share, training.per_device_batch_size)
    return load.times(max(1.0, share) / load.examples)


def saved_activations(
    accelerator: Accelerator, model: PreTrainedModel, objective: Objective, dataset: Dataset | Stream, micro: BatchSize
) -> float:
    """Return the bytes that a micro-batch saves for the backward pass, without weights.

    Counted in a short forward pass and in one with a third of its rows, and extrapolated linearly to the micro-batch.
    """
    model.to(accelerator.device).train()  # type: ignore[arg-type]
    model = accelerator.prepare_model(model, evaluation_mode=True)
    sample = max(
        1,
        min(
            round(micro.examples),
            round((PICTURES if objective.unit == "pictures" else SAMPLE) / (micro.tokens / micro.examples)),
        ),
    )
    counted: dict[int, tuple[float, int]] = {}
    rows = Rows(dataset)
    for texts in {sample, max(1, sample // 3)} if sample < round(micro.examples) else {sample}:
        examples = rows.__getitems__([RowIndex(0, i) for i in range(min(texts, len(rows)))])
        batch = send_to_device(objective.collate(examples), accelerator.device)
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), SavedActivations(model) as saved:
            loss = objective.loss(model, batch)
            size = objective.size(batch, len(examples))
            counted[texts] = size.places + size.written_places, saved.bytes
        del loss
    (places, most), (fewer, least) = counted[sample], counted[min(counted)]
    target = micro.places + micro.written_places
    if places == fewer:
        return most * target / places
    return most + (most - least) / (places - fewer) * (target - places)


def _free_memory(accelerator: Accelerator) -> float:
    if accelerator.device.type == "cuda":
        kept = torch.cuda.memory_reserved(accelerator.device) - torch.cuda.memory_allocated(accelerator.device)
        return torch.cuda.mem_get_info(accelerator.device)[0] + kept
    release_freed_memory()
    return psutil.virtual_memory().available / accelerator.num_processes


def _memory_line(
    static: StaticMemory,
    activations: float,
    logits: float,
    peak: float,
    device: Device | None,
    measured: bool,
    free: float,
) -> str:
    parts = {"weights": static.weights, "gradients": static.gradients, "optimizer": static.optimizer}
    parts |= {"activations": activations, "logits": logits}
    rest = peak - sum(parts.values())
    if measured and rest > 0:
        parts["process and temporary buffers"] = rest
    verdict = ""
    if device:
        verdict = f", {'fits' if peak < device.memory else 'DOES NOT FIT'} {byte_size(device.memory)}"
    elif not measured:
        verdict = f", MORE THAN THE FREE {byte_size(free)}: lower training.per_device_batch_size"
    details = ", ".join(f"{name} {byte_size(value)}" for name, value in parts.items() if value)
    return f"{byte_size(peak)} a device{verdict}: {details}"


def _sharding_line(static: StaticMemory, devices: int, sharded: bool) -> str:
    """Describe the memory that FSDP2 takes, or would take."""
    return (
        f"sharded (FSDP2) weights, gradients and optimizer {'take' if sharded else 'would take'} "
        f"{byte_size(static.sharded(devices).total)} a device instead of {byte_size(static.total)}: 1/{devices} of "
        "them, plus one full copy of the weights (to evaluate) or gradients (with several micro-batches)"
    )


def _sources(
    training: TrainingSection, device: Device | None, devices: int, measured: Probe | None, streamed: bool, width: int
) -> list[str]:
    """Explain how the other numbers were found."""
    lines = [f"arithmetic: FLOPs = {FORMULA}", "arithmetic: gradients and optimizer from the weights"]
    precision = training.mixed_precision.replace("no", "fp32")
    if device:
        lines += [
            f"data sheet of {device.name}: time = FLOPs / ({devices} x {device.share(width):.0%} of its peak in "
            f"{precision}) + 2 x weights, gradients and optimizer / bandwidth; evaluations are a third of the FLOPs",
            "not included: communication, kernel launches (which dominate small models), reading, saving",
        ]
    elif measured:
        cut = f", with {measured.share:.1%} of its rows," if measured.share < 1 else ""
        lines += [
            f"measuring: a step{cut} is the median of {measured.steps} steps of this run after a warm-up; memory is "
            "the peak of this process during these steps and an evaluation",
            f"not included: saving, compiling{', most of the reading and tokenising of the stream' * streamed}",
        ]
    return lines
