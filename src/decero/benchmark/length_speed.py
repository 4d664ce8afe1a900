"""Time a training step by length of the rows, at the same number of tokens, beside the sequential depth."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from decero.benchmark.measure import interleaved, spread, timed
from decero.benchmark.synthetic_runs import build_arm, kept
from decero.config.long_range import SpeedWork
from decero.execution.objective import token_loss
from decero.training.runs import Run

# Steps of a layer that wait for each other, of a row of L tokens: Vaswani et al. 2017, table 1; Feng et al. 2024
# (2410.01201), section 3 for the parallel scan.
SEQUENTIAL: dict[str, Callable[[int], int]] = {
    "attention": lambda length: 1,
    "conv": lambda length: 1,
    "min_gru": lambda length: math.ceil(math.log2(length)),
    "lstm": lambda length: length,
    "gru": lambda length: length,
    "rnn": lambda length: length,
}


def sequential_depth(model: PreTrainedModel, length: int) -> int | None:
    """Return how many steps wait for each other in the layers of a decero decoder; None for other models."""
    config = model.config
    if not config.model_type.startswith("decero"):
        return None
    kind = getattr(config, "mixer_type", "attention")
    return config.num_hidden_layers * SEQUENTIAL[kind](length) if kind in SEQUENTIAL else None


def speed_runs(run: Run, work: SpeedWork, tick: Callable[[], Any]) -> dict[str, Any]:
    """Time every arm at every length, in turn. Returns the part of result.json of the experiment."""
    lengths = {
        str(n): kept(run.output / "speed" / str(n) / "result.json", partial(_at, run, work, n, tick))
        for n in work.lengths
    }
    return {"lengths": lengths, "batch_tokens": work.batch_tokens, "threads": torch.get_num_threads()}


def _at(run: Run, work: SpeedWork, length: int, tick: Callable[[], Any]) -> dict[str, Any]:
    """Return {"arms": name -> seconds, tokens a second and sequential depth}, at one length."""
    device, rows = run.accelerator.device, max(1, work.batch_tokens // length)
    draw = torch.Generator().manual_seed(run.seed)
    input_ids = torch.randint(1, work.vocab_size, (rows, length), generator=draw).to(device)
    batch = {"input_ids": input_ids, "labels": input_ids}  # the time depends on no value
    models = {
        arm: build_arm(arm, shape, work.vocab_size, length, run.seed).to(device).train()  # type: ignore[arg-type]
        for arm, shape in run.config.shapes(work).items()
    }

    def step(model: PreTrainedModel) -> float:
        def unit() -> None:
            token_loss(model, batch).backward()

        seconds = timed(unit, device)
        model.zero_grad()
        return seconds

    seconds = interleaved({arm: partial(step, m) for arm, m in models.items()}, work.rounds, 1, run.seed, tick)
    arms = {
        arm: {
            "seconds": each,
            "tokens_per_s": spread([rows * length / second for second in each]),
            "sequential": sequential_depth(models[arm], length),
            "num_parameters": sum(p.numel() for p in models[arm].parameters()),
        }
        for arm, each in seconds.items()
    }
    return {"arms": arms}
