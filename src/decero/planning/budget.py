"""Implement --budget TIME: probe the machine, choose settings that fit the time, explain and record them."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from decero.config.command_line import seconds_of
from decero.config.recorded_settings import comments
from decero.config.sections import ModelSection
from decero.data.sizes import BatchSize
from decero.data.stream import Stream
from decero.errors import UserError
from decero.execution.objective import Objective
from decero.execution.optimize import optimize
from decero.formatting import count, duration
from decero.planning.cost import flops
from decero.planning.probe import Evaluate, main_process_value, probe, sample_load, time_evaluation
from decero.planning.scaling_laws import (
    BATCH_EXPONENT,
    RATE_EXPONENT,
    SIZES,
    TOKENS_PER_PARAMETER,
    WARM_UP,
    StepPlan,
    choose,
    family,
    plan,
)
from decero.training.data_loader import StepLoader
from decero.training.memory import reset_peak_memory
from decero.training.runs import Run, write_settings

Build = Callable[[ModelSection], PreTrainedModel]

RESERVED_SHARE = 0.1  # of the time, for evaluating and saving
MAX_EVALUATIONS = 10
PROBE_SECONDS = 4.0  # for the steps of a probe; at most three probes
CHOSEN = {  # the settings that a budget decides, by section
    "training": ("max_train_steps", "num_train_epochs", "global_batch_size", "global_batch_tokens", "eval_strategy",
                 "eval_steps", "save_steps"),
    "optim": ("learning_rate", "num_warmup_steps", "num_decay_steps", "schedule"),
}  # fmt: skip


def within_budget(
    run: Run, build: Build, objective: Objective, dataset: Dataset | Stream, held_out: Dataset | None,
    evaluate: Evaluate | None, most_epochs: float, row_length: int,
) -> Run:  # fmt: skip
    """Return the run with the settings that --budget decides. Prints them and, except in a dry run, records them.

    Settings given on the command line do not change. build: model section -> model. most_epochs: how often the
    objective may read its text. row_length: most tokens of a row as the model reads it.

    Raises UserError when no time is left to train, and for a stream.
    """
    if isinstance(dataset, Stream):
        raise UserError(
            "--budget needs the number of tokens, and streams have no length; remove data.streaming, or remove "
            "--budget and set training.max_train_steps (--dry-run estimates its time)"
        )
    config = run.config
    if run.resume and (Path(config.output) / "config.yaml").is_file():
        chosen, notes = _recorded_choice(config)
    else:
        budget = Budget(run, build, objective, dataset, held_out, evaluate, row_length)
        chosen, notes = main_process_value(run.accelerator, budget.decide(most_epochs))
        reset_peak_memory()
    settings = config.model_dump()
    for section, values in chosen.items():
        settings[section] |= values
    result = type(config).parse(settings, f"--budget {config.call.budget}")
    result._call = config.call
    result.call.notes = tuple(notes)
    if not config.dry_run:  # a dry run prints the notes with the settings
        run.print(*notes)
        write_settings(result, run.accelerator)
    return run.with_settings(result)


def _recorded_choice(config: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the settings and notes of the run that is resumed. Raises UserError if its budget differs."""
    record = Path(config.output) / "config.yaml"
    recorded: Any = type(config).load(str(record))
    notes = [line.removeprefix("# ") for line in comments(record)]
    if not notes or not notes[0].startswith(f"--budget {config.call.budget}:"):
        raise UserError(
            f"output: {config.output} was not started with --budget {config.call.budget}; "
            f"resume it with its own settings: {record} --resume"
        )
    chosen = {section: {n: getattr(getattr(recorded, section), n) for n in names} for section, names in CHOSEN.items()}
    return chosen | {"model": {"overrides": recorded.model.overrides}}, notes


class Budget:
    """Make one decision, from the candidate shapes, their cost per token and the measured speed."""

    def __init__(
        self, run: Run, build: Build, objective: Objective, dataset: Dataset, held_out: Dataset | None,
        evaluate: Evaluate | None, row_length: int,
    ):  # fmt: skip
        self.row_length = row_length
        self.run, self.build, self.objective = run, build, objective
        self.config, self.accelerator = run.config, run.accelerator
        config = run.config
        self.dataset, self.held_out, self.evaluate = dataset, held_out, evaluate
        self.size_is_given = any(f"model.overrides.{name}" in config.call.given for name in SIZES)
        self.fields = [] if self.size_is_given else family(config.model)
        self.sections = [self._section(fields) for fields in self.fields] or [config.model]
        self.load: BatchSize = BatchSize(0, 0, 0, 0, 0)
        self.costs: list[float] = []  # FLOPs per token, of each shape
        self.measured: dict[int, float] = {}  # shape -> FLOP/s
        self.evaluation_s = 0.0  # seconds of one evaluation, for the last measured shape

    def decide(self, most_epochs: float) -> tuple[dict[str, Any], list[str]]:
        """Return the settings by section, and the lines that explain them."""
        training, given = self.config.training, self.config.call.given
        tokens_N = self.objective.row_sizes(self.dataset).mean
        most_tokens = most_epochs * float(tokens_N.sum())
        index, tokens, seconds, reserve = self.search(most_tokens)
        cost = self.costs[index]
        speed = self.flops_per_second(cost) / cost
        steps_before = StepLoader(self.accelerator, self.dataset, self.objective, training, self.config.seed).last
        compute = tokens * cost / (self.cost_of(self.config.model) * steps_before * self.load.tokens)
        unit = "global_batch_size" if training.global_batch_size else "global_batch_tokens"
        rows = unit == "global_batch_size"
        before = getattr(training, unit)
        tokens_per_unit = self.load.tokens / before
        least = self.accelerator.num_processes if rows else int(tokens_N.max())
        planned = plan(tokens, before, tokens_per_unit, compute, least, f"training.{unit}" in given)
        step_tokens = planned.batch * tokens_per_unit
        planned = planned._replace(steps=max(1, min(planned.steps, int(seconds * speed / step_tokens))))
        chosen = self.settings(planned, unit, reserve)
        if self.fields:
            chosen["model"] = {"overrides": self.sections[index].overrides}

        total = planned.steps * step_tokens
        limit = "as many as fit in the time" if tokens >= seconds * speed else "as many as the next larger shape needs"
        if tokens == most_tokens:
            limit = f"the most for this objective is {most_epochs:g}"
        notes = [
            f"--budget {self.config.call.budget}: {duration(seconds)} to train, {duration(reserve)} to evaluate and "
            f"save; {duration(self.spent())} spent on reading and probing",
            f"  shape: {self.name(index)}, {count(round(cost / 6))} parameters used per token; " + self.reason(index),
            f"  speed: {speed:,.0f} tokens/s, {speed * cost:.3g} FLOP/s, "
            + ("measured" if index in self.measured else "interpolated between two measured shapes"),
            f"  tokens: {count(round(total))}, {total / tokens_N.sum():.2g} epochs, {limit}",
            f"  steps: {planned.steps:,} of {step_tokens / speed:.3g} s, {duration(total / speed)} in total",
            f"  batch: {planned.batch:,} {'rows' if rows else 'tokens'} instead of {before:,}; learning rate: "
            f"{planned.rate:.2g} x the configured one; scaled by ({compute:.2g} x compute) to the power "
            f"{BATCH_EXPONENT} and {RATE_EXPONENT} (Bi et al. 2024, fitted to causal models)",
        ]
        kept = sorted(given & {f"{section}.{name}" for section, names in CHOSEN.items() for name in names})
        return chosen, notes + [f"  unchanged, from the command line: {', '.join(kept)}"] * bool(kept)

    def search(self, most_tokens: float) -> tuple[int, float, float, float]:
        """Probe until the chosen shape is measured; return (index, tokens, seconds to train, reserved seconds)."""
        index = 0
        for _ in range(3):
            self.measure(index)
            left = main_process_value(self.accelerator, seconds_of(self.config.call.budget) - self.spent())
            reserve = max(RESERVED_SHARE * left, 2.5 * self.evaluation_s)
            if left <= reserve:
                raise UserError(
                    f"--budget: {self.config.call.budget} leaves no time to train: reading and probing took "
                    f"{duration(self.spent())}, an evaluation takes {duration(self.evaluation_s)}"
                )
            speeds = [self.flops_per_second(cost) / cost for cost in self.costs]
            index, tokens = choose(left - reserve, [cost / 6 for cost in self.costs], speeds, most_tokens)
            if index in self.measured:
                break
        return index, tokens, left - reserve, reserve

    def spent(self) -> float:
        """Return the seconds since the start of the command."""
        return perf_counter() - self.config.call.began

    def measure(self, index: int) -> None:
        """Time a few steps and one evaluation of a shape, with rows packed as in the run."""
        config, training = self.config, self.config.training
        model = self.build(self.sections[index])
        objective = optimize(
            self.accelerator, model, self.objective, self.dataset, self.row_length, training, quiet=True,
            attention=config.model.attn_implementation,
        )  # fmt: skip
        if not self.costs:
            self.load = sample_load(self.run, self.dataset, objective)
            self.costs = self.all_costs()
        measured = probe(self.run, model, objective, self.dataset, self.load, PROBE_SECONDS)
        rate = self.costs[index] * self.load.tokens / measured.step_s
        self.measured[index] = main_process_value(self.accelerator, rate)
        size = training.per_device_eval_batch_size
        evaluation_s = time_evaluation(self.accelerator, self.evaluate, model, objective, self.held_out, size)
        self.evaluation_s = main_process_value(self.accelerator, evaluation_s)
        self.accelerator.free_memory()

    def cost_of(self, section: ModelSection) -> float:
        """Return FLOPs per token, forward and backward."""
        with torch.device("meta") if section.config else nullcontext():  # checkpoints need their weights
            model, per_text = self.build(section), bool(self.objective.per_text)
            return flops(model, self.load, per_text, self.objective.teacher) / self.load.tokens

    def all_costs(self) -> list[float]:
        """Return the cost of every shape. Cost is linear in depth, so two depths of each width determine all."""
        costs: list[float] = []
        for i, fields in enumerate(self.fields):
            depth = sum(f["hidden_size"] == fields["hidden_size"] for f in self.fields[:i])
            costs.append(2 * costs[-1] - costs[-2] if depth > 1 else self.cost_of(self.sections[i]))
        return costs or [self.cost_of(self.sections[0])]

    def flops_per_second(self, cost: float) -> float:
        """Return FLOP/s for a cost in FLOPs per token: measured, or interpolated on logarithmic axes."""
        known = sorted((self.costs[index], rate) for index, rate in self.measured.items())
        costs, rates = (np.log([pair[i] for pair in known]) for i in (0, 1))
        return math.exp(np.interp(math.log(cost), costs, rates))

    def settings(self, planned: StepPlan, unit: str, reserve: float) -> dict[str, Any]:
        """Return the chosen settings by section, without those that the command line sets."""
        training, optim = self.config.training, self.config.optim
        evaluations = max(1, min(MAX_EVALUATIONS, int(reserve / max(self.evaluation_s, 1e-9)) - 2))
        every = math.ceil(planned.steps / evaluations)
        chosen: dict[str, Any] = {"max_train_steps": planned.steps, "num_train_epochs": None, unit: planned.batch}
        if training.eval_strategy != "no":
            chosen |= {"eval_strategy": "steps", "eval_steps": every}
        if training.save_steps is not None:
            chosen["save_steps"] = every
        schedule: dict[str, Any] = {
            "learning_rate": float(f"{optim.learning_rate * planned.rate:.2g}"),
            "num_warmup_steps": round(WARM_UP * planned.steps),
            "num_decay_steps": None,
            "schedule": "constant" if optim.schedule_free else "linear",
        }
        return {
            section: {
                name: value for name, value in values.items() if f"{section}.{name}" not in self.config.call.given
            }
            for section, values in {"training": chosen, "optim": schedule}.items()
        }

    def name(self, index: int) -> str:
        fields = self.sections[index].overrides
        return f"{fields['hidden_size']} x {fields['num_hidden_layers']}" if self.fields else "unchanged"

    def reason(self, index: int) -> str:
        if self.size_is_given:
            return "the command line sets its size"
        if not self.fields:
            return "only presets with standard names for their sizes can be resized"
        law = (
            f"{TOKENS_PER_PARAMETER} tokens per parameter (Hoffmann et al. 2022, fitted to causal models, 70 M to 16 B)"
        )
        if index == 0:
            return f"the smallest of {len(self.fields)}; a larger one would get less than {law}"
        return f"the largest of {len(self.fields)} that gets {law}"

    def _section(self, fields: dict[str, Any]) -> ModelSection:
        return self.config.model.model_copy(update={"overrides": self.config.model.overrides | fields})
