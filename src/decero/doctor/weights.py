"""Check the model by running it: learning one batch, outputs of layers, size of updates.

All checks run in fp32 without dropout, on new copies and small batches. Trained weights are only read.
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
from decero.doctor.picture_rows import UNBOUNDED
from decero.doctor.tokens import detection, entropy, uniform
from decero.execution.objective import Batch
from decero.execution.transformers_internals import GradientCheckpointingLayer
from decero.training.optimizer import build_optimizer, learning_rate_at

STEPS, SECONDS, LEAST = 100, 20, 20  # of overfit: most steps, most seconds, fewest steps
RECTIFIERS = nn.ReLU, nn.ReLU6, ReLUSquaredActivation
FIRST = 5  # number of steps with measured updates


def overfit(work: InspectedRun) -> Iterator[Finding]:
    """Check that the initial model can learn one batch, with the optimizer of the run.

    A model that ignores its input can reach the entropy of the labels of the batch. A working model gets far below.
    """
    model, batch = work.build(), work.batch()
    unbounded = work.name in UNBOUNDED
    bound = math.inf if unbounded else entropy(scored(batch).cpu()) + detection(work)[1]
    losses = _learn(work, model, batch, enough=0.0 if unbounded else 0.1 * bound)
    first, last = losses[0], losses[-1]
    yield _start(work, first)
    fell = (
        f"loss {first:.3f} -> {last:.3f} in {len(losses) - 1} steps on one batch of {len(next(iter(batch.values())))}"
    )
    rate = work.config.optim.learning_rate
    reference = min(bound, first) or first
    falling = len(losses) > LEAST and last < 0.98 * losses[-len(losses) // 4]
    if not math.isfinite(last) or last > 1.05 * first:
        mend = f"lower optim.learning_rate {rate:g} or raise optim.num_warmup_steps"
        yield Finding("overfit", "bad", f"{fell}: the loss diverges", "model", mend)
    elif last < 0.5 * reference:
        yield Finding("overfit", "ok", fell)
    elif last > 0.95 * first:
        mend = f"raise optim.learning_rate {rate:g}; if that does not help, check masks and labels"
        yield Finding("overfit", "bad", f"{fell}: the model learns nothing", "model", mend)
    elif falling or unbounded:
        mend = f"fine in a long run; in a short one raise optim.learning_rate {rate:g}"
        yield Finding("overfit", "note", f"{fell}: slow, but still falling", "model", mend)
    else:
        what = f"{fell}: stuck near {bound:.3f}, the loss of label frequencies alone"
        mend = f"check the input of the model (masks, columns) and optim.learning_rate {rate:g}"
        yield Finding("overfit", "warn" if last < 0.9 * bound else "bad", what, "model", mend)


def _learn(work: InspectedRun, model: Any, batch: Batch, enough: float) -> list[float]:
    """Train on one batch; return the loss before each step and after the last one."""
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
    """Check the loss before the first step.

    With random weights it is ln of the number of choices, within 1 nat. It is never far above that. A discriminator's
    loss counts many times, and so do the nats.
    """
    chance, random_weights = uniform(work), work.config.model.config is not None
    slack = 1 + detection(work)[0] / 10
    if chance is None:
        return Finding("first loss", "ok", f"{first:.3f}")
    what = f"{first:.3f} before the first step; uniform guessing gives {chance:.3f}"
    if not first < chance + slack:  # also true for NaN
        mend = "lower model.overrides.initializer_range, or check the norms"
        if not random_weights:
            mend = "check that the tokenizer belongs to the checkpoint, and that it was trained on such text"
        return Finding("first loss", "warn", what, "model", mend)
    if random_weights and not work.corpus.label_names and first < chance - slack:
        return Finding(
            "first loss",
            "warn",
            f"{what}: too good for random weights",
            "model",
            "check that the input does not contain the labels",
        )
    return Finding("first loss", "ok", what)


def layers(work: InspectedRun) -> Iterator[Finding]:
    """Check activation and gradient of each layer on a real batch.

    Reported are values that are zero, not finite, or 100 times larger than those of other layers: the median and the
    layer before. Trained weights are used if the run has saved them. Matrices that start at zero on purpose
    (`starts_at_zero`, the gates of adaLN-Zero) are drawn at random first: they would hide all that is behind them.
    """
    place = f"{work.trained}" if work.trained else "initial model"
    model = work.build(ModelSection(name_or_path=str(work.trained)) if work.trained else None)
    for gate in [] if work.trained else model.modules():
        if getattr(gate, "starts_at_zero", False) and isinstance(gate, nn.Linear):
            nn.init.normal_(gate.weight, std=0.1 * gate.in_features**-0.5)
    outputs: dict[str, float] = {}
    alive: dict[str, Tensor] = {}
    idle: list[str] = []
    blocks = _blocks(model)

    def keep(name: str):
        def hook(_module, inputs, output):
            tensors = output if isinstance(output, tuple | list) else [output]
            result = next(t for t in tensors if torch.is_tensor(t)).detach().float()
            outputs[name] = size = float(result.square().mean().sqrt())
            given = inputs[0].detach() if inputs and torch.is_tensor(inputs[0]) else result.new_empty(0)
            if given.shape == result.shape and float((result - given).square().mean().sqrt()) < 1e-6 * size:
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
            module = name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]  # B starts at zero
            owner = next((b for b in blocks if name.startswith(f"{b}.")), module)
            gradients[owner] = math.hypot(gradients.get(owner, 0.0), float(parameter.grad.norm()))
    found = [*_odd(outputs, "output", place, set(blocks)), *_odd(gradients, "gradient", place, set(blocks))]
    mend = "its output matrices are zero: check how the layer was initialised or loaded"
    found += [Finding("layers", "bad", "the layer does not change its input", f"{place}, {n}", mend) for n in idle]
    found += _dead(alive, place)
    low, high = (f(outputs.values(), default=0.0) for f in (min, max))
    layers = f"{len(blocks)} layer{'s' if len(blocks) != 1 else ''}"
    fine = f"{layers}, root mean square of outputs {low:.3g} to {high:.3g}, gradients finite and not zero"
    yield from found or [Finding("layers", "ok", fine)]


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of any model: checkpointable ones, else its longest module list."""
    found: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)}
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if found or not lists:
        return found
    name, longest = max(lists, key=lambda item: len(item[1]))
    return {f"{name}.{i}": module for i, module in enumerate(longest)}


def _odd(values: dict[str, float], kind: str, place: str, compared: set[str]) -> Iterator[Finding]:
    """Report values that are not finite, zero, or far above the others.

    compared: names of layers, which are alike. Other modules are only checked for zero and non-finite values.
    """
    finite = [v for name, v in values.items() if name in compared and math.isfinite(v)]
    median = previous = statistics.median(finite) if finite else 0.0
    for name, value in values.items():
        where = f"{place}, {name}"
        if not math.isfinite(value):
            mend = "lower optim.learning_rate, raise optim.num_warmup_steps"
            yield Finding("layers", "bad", f"the {kind} is not finite", where, mend)
        elif value == 0 or (name in compared and value < 1e-6 * median):
            mend = "it has no effect: check its weights, the masks, and that its output is used"
            yield Finding("layers", "bad", f"the {kind} is zero", where, mend)
        elif name in compared and value > 100 * min(
            median, previous
        ):  # the residual stream carries one large layer on to all later ones
            what = f"the {kind} is {value:.3g}, {value / min(median, previous):.0f} times that of other layers"
            mend = "check its norm and initial weights; lower optim.learning_rate"
            yield Finding("layers", "warn", what, where, mend)
        if name in compared and math.isfinite(value) and value > 0:
            previous = value


def _dead(alive: dict[str, Tensor], place: str) -> Iterator[Finding]:
    """Find units that are zero for all tokens: warn from 25 % of a layer, bad from 90 %."""
    for name, fires in alive.items():
        dead = 1 - float(fires.float().mean())
        if dead >= 0.25:
            severity: Severity = "bad" if dead >= 0.9 else "warn"
            mend = "lower optim.learning_rate or use hidden_act gelu or silu"
            yield Finding("layers", severity, f"{percent(dead)} of the units never fire", f"{place}, {name}", mend)


def updates(work: InspectedRun) -> Iterator[Finding]:
    """Check how far the first steps move each matrix, relative to its norm.

    About 1e-4 to 1e-2 per step is normal; a finding starts half a decade outside. The upper limit applies to the first
    steps of the schedule, the lower limit to its peak learning rate. A matrix that starts at zero, as half of an
    adapter does, is left out: at first it moves by a multiple of its norm.
    """
    model, optim = work.build(), work.config.optim
    zero = {name for name, p in model.named_parameters() if not p.detach().any()}
    optimizer = build_optimizer(model, optim)
    last = max(work.steps, FIRST)
    fits = {"num_warmup_steps": min(optim.num_warmup_steps, last)}  # the check of the schedule reports a longer one
    rate_at = learning_rate_at(optimizer, optim.model_copy(update=fits), last)
    moved: dict[str, float] = {}
    ratios = []
    for step in range(FIRST):
        batch = work.batch(step)
        rate = rate_at(step) or rate_at(step + 1)  # warm-up may start at 0, and that step moves nothing
        for group in optimizer.param_groups:
            group["lr"] = rate
        before = {
            n: p.detach().clone()
            for n, p in model.named_parameters()
            if p.dim() > 1 and p.requires_grad and n not in zero
        }
        loss = work.objective.loss(model, batch) / max(1, work.objective.count(batch))
        _step(model, optimizer, loss, optim.max_grad_norm)
        after = dict(model.named_parameters())
        moved = {n: float((after[n].detach() - b).norm() / b.norm()) for n, b in before.items() if b.norm() > 0}
        ratios.append(statistics.median(moved.values()) if moved else 0.0)
    highest, peak = max(ratios), ratios[-1] * optim.learning_rate / rate
    furthest = max(moved, key=lambda name: moved[name], default="nothing")
    largest = f"a step changes a matrix by {highest:.1e} of its norm"
    if not highest <= 3e-2:
        mend = f"lower optim.learning_rate {optim.learning_rate:g} or raise optim.num_warmup_steps"
        severity: Severity = "warn" if highest < 0.3 else "bad"
        yield Finding("updates", severity, f"{largest} (1e-2 is high), most in {furthest}", "first steps", mend)
    elif peak < 3e-5:
        what = f"a step changes a matrix by only {peak:.1e} of its norm at the peak learning rate (1e-4 is low)"
        yield Finding("updates", "warn", what, "first steps", f"raise optim.learning_rate {optim.learning_rate:g}")
    else:
        yield Finding("updates", "ok", f"{largest} at first, by {peak:.1e} at the peak learning rate")
