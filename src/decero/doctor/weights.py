"""Checks that run the model: does it learn one batch, what do its layers give, how far does a step move it.

All in fp32 and without dropout, on fresh copies and small batches; what was trained is only read.
"""

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ReLUSquaredActivation

from decero.config.sections import ModelSection
from decero.doctor.findings import Finding, Severity, percent
from decero.doctor.inspected_run import InspectedRun, scored
from decero.doctor.tokens import entropy, uniform
from decero.execution.objective import Batch
from decero.execution.transformers_internals import GradientCheckpointingLayer
from decero.training.optimizer import build_optimizer, learning_rate_at

STEPS, SECONDS, LEAST = 100, 20, 20  # of overfitting: at most, at most, at least
RECTIFIERS = nn.ReLU, nn.ReLU6, ReLUSquaredActivation
FIRST = 5  # steps whose updates are measured


def overfit(work: InspectedRun) -> Iterator[Finding]:
    """Whether the model as it starts learns one batch by heart, with the run's optimizer and learning rate.

    A model that reads nothing gets down to the entropy of the batch's own labels; one that works gets well below.
    """
    model, batch = work.build(), work.batch()
    bound = entropy(scored(batch).cpu())
    losses = _learn(work, model, batch, enough=0.1 * bound)
    first, last = losses[0], losses[-1]
    yield _start(work, first)
    fell = f"loss {first:.3f} -> {last:.3f} in {len(losses) - 1} steps on one batch of {len(batch['input_ids'])}"
    rate = work.config.optim.learning_rate
    reference = min(bound, first) or first
    falling = len(losses) > LEAST and last < 0.98 * losses[-len(losses) // 4]
    where = "model"
    if not math.isfinite(last) or last > 1.05 * first:
        mend = f"lower optim.learning_rate {rate:g} or raise optim.num_warmup_steps"
        yield Finding("overfit", "bad", f"{fell}: it diverges", where, mend)
    elif last < 0.5 * reference:
        yield Finding("overfit", "ok", fell)
    elif last > 0.95 * first:
        mend = f"raise optim.learning_rate {rate:g}; if that does not help, masks or labels are wrong"
        yield Finding("overfit", "bad", f"{fell}: it learns nothing", where, mend)
    elif falling:
        mend = f"no harm in a long run; else raise optim.learning_rate {rate:g}"
        yield Finding("overfit", "note", f"{fell}: slow, and still falling", where, mend)
    else:
        what = f"{fell}: stuck, where the labels' frequencies alone give {bound:.3f}"
        mend = f"check what the model reads (masks, columns) and optim.learning_rate {rate:g}"
        yield Finding("overfit", "warn" if last < 0.9 * bound else "bad", what, where, mend)


def _learn(work: InspectedRun, model: Any, batch: Batch, enough: float) -> list[float]:
    """The loss before each step and after the last one."""
    optim, losses = work.config.optim, []
    optimizer, count = build_optimizer(model, optim), work.objective.count(batch)
    warmup, began = min(optim.num_warmup_steps, STEPS // 5), time.monotonic()
    for step in range(STEPS + 1):
        loss = work.objective.loss(model, batch) / count
        losses.append(float(loss.detach()))
        late = time.monotonic() - began > SECONDS and step >= LEAST
        if not math.isfinite(losses[-1]) or losses[-1] < enough or late or step == STEPS:
            return losses
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * min(1.0, (step + 1) / max(1, warmup))
        _step(model, optimizer, loss, optim.max_grad_norm)
    return losses


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float | None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()


def _start(work: InspectedRun, first: float) -> Finding:
    """The loss before the first step: ln of the choices for random weights, give or take a nat; never far above it."""
    chance, random_weights = uniform(work), work.config.model.config is not None
    if chance is None:
        return Finding("first loss", "ok", f"{first:.3f}")
    beside = f"{first:.3f} before the first step, {chance:.3f} by chance alone"
    if not first < chance + 1:  # NaN as well
        mend = "lower model.overrides.initializer_range, or check the norms"
        if not random_weights:
            mend = "is this the checkpoint's own tokenizer, and text of the kind that it knows?"
        return Finding("first loss", "warn", beside, "model", mend)
    if random_weights and not work.corpus.label_names and first < chance - 1:
        return Finding(
            "first loss", "warn", f"{beside}: random weights cannot know that", "model", "can it see the labels?"
        )
    return Finding("first loss", "ok", beside)


def layers(work: InspectedRun) -> Iterator[Finding]:
    """Activation and gradient of each layer on a real batch: named when zero, not finite or 100 times those of others.

    The others are the median and the layer before. Of the trained weights where the run has left them.
    """
    place = f"{work.trained}" if work.trained else "model, as it starts"
    model = work.build(ModelSection(name_or_path=str(work.trained)) if work.trained else None)
    outputs: dict[str, float] = {}
    alive: dict[str, Tensor] = {}
    idle: list[str] = []
    blocks = _blocks(model)

    def keep(name: str):
        def hook(_module, inputs, output):
            tensors = output if isinstance(output, tuple | list) else [output]
            made = next(t for t in tensors if torch.is_tensor(t)).detach().float()
            outputs[name] = size = float(made.square().mean().sqrt())
            given = inputs[0].detach() if inputs and torch.is_tensor(inputs[0]) else made.new_empty(0)
            if given.shape == made.shape and float((made - given).square().mean().sqrt()) < 1e-6 * size:
                idle.append(name)

        return hook

    def fires(name: str):
        def hook(_module, _inputs, output):
            now = (output.detach().flatten(0, -2) > 0).any(dim=0)
            alive[name] = alive.get(name, torch.zeros_like(now)) | now

        return hook

    hooks = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    hooks += [m.register_forward_hook(fires(n)) for n, m in model.named_modules() if isinstance(m, RECTIFIERS)]
    batch = work.batch()
    work.objective.loss(model, batch).backward()
    for hook in hooks:
        hook.remove()
    gradients: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            owner = next((b for b in blocks if name.startswith(f"{b}.")), name.rpartition(".")[0])
            gradients[owner] = math.hypot(gradients.get(owner, 0.0), float(parameter.grad.norm()))
    found = [*_odd(outputs, "output", place, set(blocks)), *_odd(gradients, "gradient", place, set(blocks))]
    mend = "its last matrices are zero: check how it was initialised or loaded"
    found += [Finding("layers", "bad", "the layer adds nothing to what it reads", f"{place}, {n}", mend) for n in idle]
    found += _dead(alive, place)
    low, high = (f(outputs.values(), default=0.0) for f in (min, max))
    fine = f"{len(blocks)} layers, outputs of root mean square {low:.3g} to {high:.3g}, gradients finite and alive"
    yield from found or [Finding("layers", "ok", fine)]


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of any model: those that can be checkpointed, else what stands in its longest list of modules."""
    found: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)}
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if found or not lists:
        return found
    name, longest = max(lists, key=lambda item: len(item[1]))
    return {f"{name}.{i}": module for i, module in enumerate(longest)}


def _odd(values: dict[str, float], kind: str, place: str, compared: set[str]) -> Iterator[Finding]:
    """compared: layers, which are alike; what stands outside them is only asked whether it is alive."""
    finite = [v for name, v in values.items() if name in compared and math.isfinite(v)]
    median = previous = statistics.median(finite) if finite else 0.0
    for name, value in values.items():
        where = f"{place}, {name}"
        if not math.isfinite(value):
            mend = "lower optim.learning_rate, raise optim.num_warmup_steps"
            yield Finding("layers", "bad", f"the {kind} is not finite", where, mend)
        elif value == 0 or (name in compared and value < 1e-6 * median):
            mend = "it does nothing: look at its weights, masks and whether anything reads its output"
            yield Finding("layers", "bad", f"the {kind} is zero", where, mend)
        elif name in compared and value > 100 * min(median, previous):  # a residual hands on what one layer blew up
            what = f"the {kind} is {value:.3g}, {value / min(median, previous):.0f} times that of other layers"
            mend = "look at its norm and initial weights; lower optim.learning_rate"
            yield Finding("layers", "warn", what, where, mend)
        if name in compared and math.isfinite(value) and value > 0:
            previous = value


def _dead(alive: dict[str, Tensor], place: str) -> Iterator[Finding]:
    """Units that no token of the batch makes fire: warn from a quarter of a layer's on, bad from nine tenths on."""
    for name, fires in alive.items():
        dead = 1 - float(fires.float().mean())
        if dead >= 0.25:
            severity: Severity = "bad" if dead >= 0.9 else "warn"
            mend = "lower optim.learning_rate or take hidden_act gelu or silu"
            yield Finding("layers", severity, f"{percent(dead)} of the units never fire", f"{place}, {name}", mend)


def updates(work: InspectedRun) -> Iterator[Finding]:
    """How far the first steps move each matrix, against its size: about 1e-4 to 1e-2 a step, half a decade each way.

    Too far: as the run's schedule has the first steps. Too little: as it would be at the peak of the schedule.
    """
    model, optim = work.build(), work.config.optim
    optimizer = build_optimizer(model, optim)
    rate_at = learning_rate_at(optimizer, optim, max(work.steps, FIRST))
    moved: dict[str, float] = {}
    ratios = []
    for step in range(FIRST):
        batch = work.batch(step)
        rate = rate_at(step) or rate_at(step + 1)  # a warm-up begins at 0, which moves nothing
        for group in optimizer.param_groups:
            group["lr"] = rate
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() > 1 and p.requires_grad}
        loss = work.objective.loss(model, batch) / max(1, work.objective.count(batch))
        _step(model, optimizer, loss, optim.max_grad_norm)
        after = dict(model.named_parameters())
        moved = {n: float((after[n].detach() - b).norm() / b.norm()) for n, b in before.items() if b.norm() > 0}
        ratios.append(statistics.median(moved.values()) if moved else 0.0)
    highest, peak = max(ratios), ratios[-1] * optim.learning_rate / rate
    furthest = max(moved, key=lambda name: moved[name], default="nothing")
    said = f"a step moves a matrix by {highest:.1e} of its size"
    if not highest <= 3e-2:
        mend = f"lower optim.learning_rate {optim.learning_rate:g} or raise optim.num_warmup_steps"
        severity: Severity = "warn" if highest < 0.3 else "bad"
        yield Finding("updates", severity, f"{said} (1e-2 is much), {furthest} the furthest", "first steps", mend)
    elif peak < 3e-5:
        what = f"a step moves a matrix by {peak:.1e} of its size even at the peak learning rate (1e-4 is little)"
        yield Finding("updates", "warn", what, "first steps", f"raise optim.learning_rate {optim.learning_rate:g}")
    else:
        yield Finding("updates", "ok", f"{said} at first, by {peak:.1e} at the peak learning rate")
