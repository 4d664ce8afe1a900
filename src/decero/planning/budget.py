"""--budget TIME: probe this machine, choose what fits in the time, say why, and write it into the run's settings."""

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
    Plan,
    choose,
    family,
    plan,
)
from decero.training.data_loader import StepLoader
from decero.training.memory import reset_peak_memory
from decero.training.runs import Run, settle

Build = Callable[[ModelSection], PreTrainedModel]

KEPT_BACK = 0.1  # share of the time for evaluating and saving
MOST_EVALUATIONS = 10
SECONDS = 4.0  # of a probe's steps; there are three probes at most
SETTLED = {  # what a budget decides, by section
    "training": ("max_train_steps", "num_train_epochs", "global_batch_size", "global_batch_tokens", "eval_strategy",
                 "eval_steps", "save_steps"),
    "optim": ("learning_rate", "num_warmup_steps", "schedule"),
}  # fmt: skip


def within_budget(
    run: Run, build: Build, objective: Objective, dataset: Dataset | Stream, held_out: Dataset | None,
    evaluate: Evaluate | None, most_epochs: float,
) -> Run:  # fmt: skip
    """The run with what --budget decides filled in: printed, and unless this is a dry run written down.

    What stands on the command line stays as it is. build: a model section to its model. most_epochs: how often the
    objective may read its text.

    Raises UserError when the time is over before training could begin, and for a stream.
    """
    if isinstance(dataset, Stream):
        raise UserError(
            "--budget counts the tokens that there are, and a stream does not say; leave --budget out "
            "(--dry-run says how long training.max_train_steps will take), or data.streaming"
        )
    config = run.config
    if run.resume and (Path(config.output) / "config.yaml").is_file():
        chosen, notes = _chosen_before(config)
    else:
        budget = Budget(run, build, objective, dataset, held_out, evaluate)
        chosen, notes = main_process_value(run.accelerator, budget.decide(most_epochs))
        reset_peak_memory()
    settings = config.model_dump()
    for section, values in chosen.items():
        settings[section] |= values
    result = type(config).parse(settings, f"--budget {config.call.budget}")
    result._call = config.call
    result.call.notes = tuple(notes)
    if not config.dry_run:  # which shows them with the settings
        run.print(*notes)
        settle(result, run.accelerator)
    return run.with_settings(result)


def _chosen_before(config: Any) -> tuple[dict[str, Any], list[str]]:
    """What the run that is resumed was given."""
    record = Path(config.output) / "config.yaml"
    text = record.read_text(encoding="utf-8")
    if not text.startswith(f"# --budget {config.call.budget}:"):
        raise UserError(
            f"output: {config.output} was not begun with --budget {config.call.budget}; "
            f"resume it with the settings that it has: {record} --resume"
        )
    then: Any = type(config).load(str(record))
    chosen = {section: {n: getattr(getattr(then, section), n) for n in names} for section, names in SETTLED.items()}
    return chosen | {"model": {"overrides": then.model.overrides}}, [
        line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")
    ]


class Budget:
    """One decision: shapes, what they cost a token, how fast this machine turned out to be."""

    def __init__(
        self, run: Run, build: Build, objective: Objective, dataset: Dataset, held_out: Dataset | None,
        evaluate: Evaluate | None,
    ):  # fmt: skip
        self.run, self.build, self.objective = run, build, objective
        self.config, self.accelerator = run.config, run.accelerator
        config = run.config
        self.dataset, self.held_out, self.evaluate = dataset, held_out, evaluate
        self.is_given = any(f"model.overrides.{name}" in config.call.given for name in SIZES)
        self.fields = [] if self.is_given else family(config.model)
        self.sections = [self._section(fields) for fields in self.fields] or [config.model]
        self.load: BatchSize = BatchSize(0, 0, 0, 0, 0)
        self.costs: list[float] = []  # FLOPs a token, of each shape
        self.measured: dict[int, float] = {}  # shape -> FLOP/s
        self.evaluation_s = 0.0  # seconds of an evaluation, of the shape measured last

    def decide(self, most_epochs: float) -> tuple[dict[str, Any], list[str]]:
        """The settings by section, and the lines that say why."""
        training, given = self.config.training, self.config.call.given
        tokens_N = self.objective.row_sizes(self.dataset).mean
        most = most_epochs * float(tokens_N.sum())
        index, tokens, seconds, reserve = self.search(most)
        cost = self.costs[index]
        speed = self.pace(cost) / cost
        steps_before = StepLoader(self.accelerator, self.dataset, self.objective, training, self.config.seed).last
        compute = tokens * cost / (self.cost_of(self.config.model) * steps_before * self.load.tokens)
        unit = "global_batch_size" if training.global_batch_size else "global_batch_tokens"
        rows = unit == "global_batch_size"
        before = getattr(training, unit)
        a_unit = self.load.tokens / before
        least = self.accelerator.num_processes if rows else int(tokens_N.max())
        planned = plan(tokens, before, a_unit, compute, least, f"training.{unit}" in given)
        a_step = planned.batch * a_unit
        planned = planned._replace(steps=max(1, min(planned.steps, int(seconds * speed / a_step))))
        chosen = self.settings(planned, unit, reserve)
        if self.fields:
            chosen["model"] = {"overrides": self.sections[index].overrides}

        total = planned.steps * a_step
        limit = "all that fit" if tokens >= seconds * speed else "as many as the next larger shape would want"
        if tokens == most:
            limit = f"no objective of this kind is given more than {most_epochs:g}"
        notes = [
            f"--budget {self.config.call.budget}: {duration(seconds)} to train, {duration(reserve)} to evaluate and "
            f"save; {duration(self.spent())} went into reading and probing",
            f"  shape: {self.name(index)}, {count(round(cost / 6))} parameters as a token meets them; "
            + self.reason(index),
            f"  speed: {speed:,.0f} tokens/s, {speed * cost:.3g} FLOP/s, "
            + ("measured" if index in self.measured else "between two shapes that were measured"),
            f"  tokens: {count(round(total))}, {total / tokens_N.sum():.2g} epochs, {limit}",
            f"  steps: {planned.steps:,} of {a_step / speed:.3g} s, {duration(total / speed)} in all",
            f"  batch: {planned.batch:,} {'rows' if rows else 'tokens'}, before {before:,}; learning rate: "
            f"{planned.rate:.2g} x the one before; for {compute:.2g} x the compute, to the power of {BATCH_EXPONENT} "
            f"and {RATE_EXPONENT} (Bi et al. 2024, fitted to causal models)",
        ]
        kept = sorted(given & {f"{section}.{name}" for section, names in SETTLED.items() for name in names})
        return chosen, notes + [f"  from the command line, so kept: {', '.join(kept)}"] * bool(kept)

    def search(self, most_tokens: float) -> tuple[int, float, float, float]:
        """A shape, its tokens, the seconds to train and those kept back. Probes until the shape itself was probed."""
        index = 0
        for _ in range(3):
            self.measure(index)
            left = main_process_value(self.accelerator, seconds_of(self.config.call.budget) - self.spent())
            reserve = max(KEPT_BACK * left, 2.5 * self.evaluation_s)
            if left <= reserve:
                raise UserError(
                    f"--budget: {self.config.call.budget} leaves no time to train: reading and probing took "
                    f"{duration(self.spent())}, an evaluation takes {duration(self.evaluation_s)}"
                )
            speeds = [self.pace(cost) / cost for cost in self.costs]
            index, tokens = choose(left - reserve, [cost / 6 for cost in self.costs], speeds, most_tokens)
            if index in self.measured:
                break
        return index, tokens, left - reserve, reserve

    def spent(self) -> float:
        """Seconds since the run was called."""
        return perf_counter() - self.config.call.began

    def measure(self, index: int) -> None:
        """Time a few steps and an evaluation of a shape, with its rows laid out as they will be."""
        config, training = self.config, self.config.training
        model = self.build(self.sections[index])
        objective = optimize(
            self.accelerator, model, self.objective, self.dataset, config.data.max_length, training, quiet=True
        )
        if not self.costs:
            self.load = sample_load(self.run, self.dataset, objective)
            self.costs = self.all_costs()
        found = probe(self.run, model, objective, self.dataset, self.load, SECONDS)
        self.measured[index] = main_process_value(self.accelerator, self.costs[index] * self.load.tokens / found.step_s)
        size = training.per_device_eval_batch_size
        evaluation_s = time_evaluation(self.accelerator, self.evaluate, model, objective, self.held_out, size)
        self.evaluation_s = main_process_value(self.accelerator, evaluation_s)
        self.accelerator.free_memory()

    def cost_of(self, section: ModelSection) -> float:
        """FLOPs a token, forward and backward."""
        with torch.device("meta") if section.config else nullcontext():  # a checkpoint is read as it is
            return flops(self.build(section), self.load, bool(self.objective.per_text)) / self.load.tokens

    def all_costs(self) -> list[float]:
        """Of every shape. They grow by the same amount with each layer, so two depths of a width tell of all."""
        costs: list[float] = []
        for i, fields in enumerate(self.fields):
            depth = sum(f["hidden_size"] == fields["hidden_size"] for f in self.fields[:i])
            costs.append(2 * costs[-1] - costs[-2] if depth > 1 else self.cost_of(self.sections[i]))
        return costs or [self.cost_of(self.sections[0])]

    def pace(self, cost: float) -> float:
        """FLOP/s at so many FLOPs a token: what was measured, or on the line between, both axes logarithmic."""
        known = sorted((self.costs[index], rate) for index, rate in self.measured.items())
        costs, rates = (np.log([pair[i] for pair in known]) for i in (0, 1))
        return math.exp(np.interp(math.log(cost), costs, rates))

    def settings(self, planned: Plan, unit: str, reserve: float) -> dict[str, Any]:
        """What is set, but for what the command line has set."""
        training, optim = self.config.training, self.config.optim
        looks = max(1, min(MOST_EVALUATIONS, int(reserve / max(self.evaluation_s, 1e-9)) - 2))
        every = math.ceil(planned.steps / looks)
        chosen: dict[str, Any] = {"max_train_steps": planned.steps, "num_train_epochs": None, unit: planned.batch}
        if training.eval_strategy != "no":
            chosen |= {"eval_strategy": "steps", "eval_steps": every}
        if training.save_steps is not None:
            chosen["save_steps"] = every
        schedule: dict[str, Any] = {
            "learning_rate": float(f"{optim.learning_rate * planned.rate:.2g}"),
            "num_warmup_steps": round(WARM_UP * planned.steps),
            "schedule": "linear",
        }
        return {
            section: {
                name: value for name, value in values.items() if f"{section}.{name}" not in self.config.call.given
            }
            for section, values in {"training": chosen, "optim": schedule}.items()
        }

    def name(self, index: int) -> str:
        fields = self.sections[index].overrides
        return f"{fields['hidden_size']} x {fields['num_hidden_layers']}" if self.fields else "as it is"

    def reason(self, index: int) -> str:
        if self.is_given:
            return "its size stands on the command line"
        if not self.fields:
            return "a checkpoint, or an architecture that names its sizes otherwise, has no other sizes"
        law = (
            f"{TOKENS_PER_PARAMETER} tokens a parameter (Hoffmann et al. 2022, fitted to causal models of 70 M to 16 B)"
        )
        if index == 0:
            return f"the smallest of {len(self.fields)}; a larger one would not see {law}"
        return f"the largest of {len(self.fields)} that sees {law}"

    def _section(self, fields: dict[str, Any]) -> ModelSection:
        return self.config.model.model_copy(update={"overrides": self.config.model.overrides | fields})
