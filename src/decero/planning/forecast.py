"""What --dry-run says of a run before it starts: parameters, FLOPs, memory, time, and how each number was found."""

import textwrap
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from decero.config.devices import UTILISATION, Device
from decero.config.sections import TrainingSection
from decero.data.order import RowIndex, Rows
from decero.data.sizes import BatchSize
from decero.data.stream import Stream
from decero.execution.objective import Objective
from decero.execution.transformers_internals import attention_of
from decero.formatting import duration
from decero.planning.cost import FORMULA, SavedActivations, StaticMemory, flops, logits_bytes, static_memory
from decero.planning.probe import Evaluate, Probe, main_process_value, probe, sample_load, time_evaluation
from decero.training.data_loader import step_loader
from decero.training.memory import give_back_memory, peak_memory
from decero.training.optimizer import build_optimizer, learning_rate_at
from decero.training.runs import Run

SAMPLE = 2048  # tokens of the forward pass whose kept tensors are counted


@dataclass(frozen=True)
class Forecast:
    """bytes a device; seconds, of training with its evaluations and of what follows. None: could not be found."""

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
    judge: Evaluate | None = None,
) -> Forecast:  # fmt: skip
    """Say what the run would do and cost, on this machine or on `config.call.device`. Nothing is written.

    evaluate: what is done with the `held_out` rows during training. judge: what is done with them at the end. `model`
    is not to be used afterwards.
    """
    config, accelerator, training, seed = run.config, run.accelerator, run.training, run.seed
    device = config.call.device
    loader = step_loader(accelerator, dataset, objective, training, seed)
    steps, per_epoch = loader.last, loader.steps_per_epoch
    learning_rate_at(build_optimizer(model, run.optim), run.optim, steps)  # their settings are checked, too
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if device and attention_of(model) == "matmul":
        model.set_attn_implementation("sdpa")  # what an accelerator runs
    load = sample_load(run, dataset, objective)
    per_text, held = bool(objective.per_text), static_memory(model, run.optim)
    a_step = flops(model, load, per_text)
    devices = (device and training.num_processes) or accelerator.num_processes
    micro = micro_batch(load, training, devices)
    kept = saved_activations(accelerator, model, objective, dataset, micro)
    logits = logits_bytes(model, micro)
    looks = evaluations(training, steps, per_epoch) if evaluate and held_out is not None else 0
    parameters = sum(p.numel() for p in model.parameters())
    embeddings = sum({id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}.values())

    measured: Probe | None = None
    sharded = run.sharded
    mine = held.sharded(devices) if sharded else held
    needed, free = mine.total + kept + logits, _free_memory(accelerator)
    step_s = evaluation_s = end_s = None
    if device:
        rate = devices * device.flops(training.mixed_precision)
        step_s = a_step / rate + 2 * held.total / (devices if sharded else 1) / device.bandwidth
        looked = 0 if held_out is None else objective.row_sizes(held_out).mean.sum()
        passed = float(looked) / load.tokens
        evaluation_s = end_s = passed * a_step / 3 / rate
    elif main_process_value(accelerator, needed < free):
        measured = probe(run, model, objective, dataset, load)
        size = training.per_device_eval_batch_size
        evaluation_s = time_evaluation(accelerator, evaluate, model, objective, held_out, size) if looks else 0.0
        end_s = time_evaluation(accelerator, judge, model, objective, held_out, size)
        step_s = measured.step_s
    peak = peak_memory(accelerator) if measured else needed
    if measured and measured.share < 1:
        peak += kept * (1 - min(1.0, measured.share * load.examples / devices / micro.examples))
    train_s = None if step_s is None else steps * step_s + looks * (evaluation_s or 0)

    filled = load.tokens / (load.places + load.written_places)
    lengths, streamed = objective.row_sizes(Rows(dataset).dataset).most, isinstance(dataset, Stream)
    time = "not found, for what does not fit cannot be timed"
    if train_s is not None and step_s is not None:
        then = f" and {looks:,} evaluation{'s' * (looks != 1)} of {duration(evaluation_s or 0)}" if looks else ""
        after = f"; then {duration(end_s)} to judge the model" if end_s else ""
        time = f"{duration(train_s)}: {steps:,} steps of {step_s:.3g} s{then}{after}"
    which = "a stream; its first " if streamed else ""
    lines = {
        "parameters": f"{parameters:,}, {embeddings:,} of them embeddings",
        "training rows": f"{which}{len(lengths):,} of {lengths.mean():.1f} tokens on average",
        "tokens a step": f"{load.tokens:,.0f} in {load.examples:,.0f} rows, {load.scored:,.0f} "
        f"{'texts' if per_text else 'of them'} scored; {filled:.0%} of the places hold a token",
        "steps": f"{steps:,}" + ("" if streamed else f" ({steps / per_epoch:.2f} epochs)"),
        "FLOPs": f"{a_step:.3g} a step, {a_step * steps:.3g} in all",
        "memory": _memory(mine, kept, logits, peak, device, measured is not None, free),
        f"on {devices} devices": _sharded(held, devices, sharded) if devices > 1 else "",
        "time": time,
        "found by": "counting: parameters, rows, tokens, steps, and what a forward pass keeps for the backward pass",
    }
    lines |= {" " * n: line for n, line in enumerate(_how(training, device, devices, measured, streamed), start=1)}
    accelerator.print(config.to_yaml())
    for name, line in lines.items():
        if line:
            accelerator.print(textwrap.fill(line, 118, initial_indent=f"{name:<18}", subsequent_indent=" " * 18))
    accelerator.print("dry run: nothing was trained and nothing written")
    return Forecast(parameters, steps, load, a_step, peak, step_s, train_s, end_s)


def evaluations(training: TrainingSection, steps: int, steps_per_epoch: float) -> int:
    """How often a run evaluates: every so many steps, and at its end."""
    every = {"steps": training.eval_steps, "epoch": steps_per_epoch}.get(training.eval_strategy)
    return int(-(-steps // every)) if every else 0


def micro_batch(load: BatchSize, training: TrainingSection, devices: int) -> BatchSize:
    """What one device computes at once."""
    share = load.examples / devices
    if training.per_device_tokens:
        share = min(share, training.per_device_tokens * load.examples / (load.places + load.written_places))
    elif isinstance(training.per_device_batch_size, int):
        share = min(share, training.per_device_batch_size)
    return load.times(max(1.0, share) / load.examples)


def saved_activations(
    accelerator: Accelerator, model: PreTrainedModel, objective: Objective, dataset: Dataset | Stream, micro: BatchSize
) -> float:
    """Bytes that a micro-batch keeps for the backward pass, weights not counted.

    Counted in a forward pass of as many rows as are quick and in one of a third; the line through both says the rest.
    """
    model.to(accelerator.device).train()  # type: ignore[arg-type]
    model = accelerator.prepare_model(model, evaluation_mode=True)
    many = max(1, min(round(micro.examples), round(SAMPLE / (micro.tokens / micro.examples))))
    counted: dict[int, tuple[float, int]] = {}
    rows = Rows(dataset)
    for texts in {many, max(1, many // 3)} if many < round(micro.examples) else {many}:
        some = rows.__getitems__([RowIndex(0, i) for i in range(min(texts, len(rows)))])
        batch = send_to_device(objective.collate(some), accelerator.device)
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), SavedActivations(model) as kept:
            loss = objective.loss(model, batch)
            size = objective.size(batch, len(some))
            counted[texts] = size.places + size.written_places, kept.bytes
        del loss
    (places, most), (fewer, least) = counted[many], counted[min(counted)]
    wanted = micro.places + micro.written_places
    if places == fewer:
        return most * wanted / places
    return most + (most - least) / (places - fewer) * (wanted - places)


def _free_memory(accelerator: Accelerator) -> float:
    if accelerator.device.type == "cuda":
        return torch.cuda.mem_get_info(accelerator.device)[0]
    give_back_memory()
    return psutil.virtual_memory().available / accelerator.num_processes


def _memory(
    held: StaticMemory, kept: float, logits: float, peak: float, device: Device | None, measured: bool, free: float
) -> str:
    parts = {"weights": held.weights, "gradients": held.gradients, "optimizer": held.optimizer}
    parts |= {"kept for the backward pass": kept, "logits": logits}
    rest = peak - sum(parts.values())
    if measured and rest > 0:
        parts["process and scratch"] = rest
    verdict = ""
    if device:
        verdict = f", {'fits' if peak < device.memory else 'DOES NOT FIT'} {_size(device.memory)}"
    elif not measured:
        verdict = f", MORE THAN THE {_size(free)} THAT ARE FREE, so lower training.per_device_batch_size"
    said = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
    return f"{_size(peak)} a device{verdict}: {said}"


def _sharded(held: StaticMemory, devices: int, already: bool) -> str:
    """What FSDP2 holds, or would."""
    return (
        f"sharded (FSDP2) weights, gradients and optimizer {'take' if already else 'would take'} "
        f"{_size(held.sharded(devices).total)} of each instead of {_size(held.total)}: 1/{devices} of them, and once "
        "whole the weights (to evaluate) or the gradients (of a step of several micro-batches)"
    )


def _how(
    training: TrainingSection, device: Device | None, devices: int, measured: Probe | None, streamed: bool
) -> list[str]:
    """How the numbers that were not counted were found."""
    lines = [f"arithmetic: FLOPs = {FORMULA}", "arithmetic: gradients and optimizer from the weights"]
    precision = training.mixed_precision.replace("no", "fp32")
    if device:
        lines += [
            f"data sheet of {device.name}: time = FLOPs / ({devices} x {UTILISATION:.0%} of its peak in {precision}) "
            "+ 2 x weights, gradients and optimizer / bandwidth; evaluations are a third of the FLOPs",
            "not in it: talk between devices, launching kernels (small models wait for it), reading, saving",
        ]
    elif measured:
        cut = f", with {measured.share:.1%} of its rows," if measured.share < 1 else ""
        lines += [
            f"measuring: a step{cut} is the median of {measured.steps} of this very run after a warm-up; memory is the "
            "peak of this process through them and an evaluation",
            f"not in it: saving, compiling{', most of the reading and tokenising of the stream' * streamed}",
        ]
    return lines


def _size(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
