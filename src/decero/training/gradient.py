"""One step's gradient: micro-batches in, accumulated gradients and the mean loss out."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from decero.data.order import Rows, Schedule
from decero.errors import UserError
from decero.training.nonfinite import bad_loss
from decero.training.objectives import Batch, Objective


class Micro(NamedTuple):
    """A collated micro-batch, the examples it was made of, and whether it weighs anything."""

    batch: Batch
    indices: list[int]
    weight: int

    def size(self, objective: Objective) -> list[int]:
        """Scored items and real tokens."""
        return [self.weight * objective.count(self.batch), self.weight * int(self.batch["attention_mask"].sum())]


def micro_batches(
    dataset: Dataset, objective: Objective, schedule: Schedule, first: int, last: int, workers: int
) -> Iterator[Micro]:
    """This process's micro-batches in order, collated ahead by `workers` processes."""

    def collate(rows: list[dict]) -> Micro:
        return Micro(objective.collate(rows), [r["index"] for r in rows], 0 if rows[0]["stand_in"] else 1)

    return iter(
        DataLoader(
            Rows(dataset),  # type: ignore[arg-type]
            batch_sampler=schedule.from_step(first, last),  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=workers,
            generator=torch.Generator(),  # else starting a loader would draw from the state that dropout draws from
            multiprocessing_context="fork" if workers else None,
        )
    )


def backward(
    accelerator: Accelerator, model: nn.Module, objective: Objective, window: list[Micro], scored: float, step: int
) -> float:
    """Accumulate the gradient of one step; returns its mean loss over every scored item of every process."""
    total = torch.zeros((), device=accelerator.device)
    suspect = None
    for number, micro in enumerate(window):
        batch = send_to_device(micro.batch, accelerator.device)
        with accelerator.no_sync(model) if number < len(window) - 1 else nullcontext():
            loss = objective.loss(model, batch) * micro.weight
            # DistributedDataParallel averages over processes; the mean is over items, so that is undone.
            accelerator.backward(loss * (accelerator.num_processes / scored))
        total += loss.detach()
        if suspect is None and not torch.isfinite(loss):
            suspect = micro
    mean = float(accelerator.reduce(total, reduction="sum")) / scored
    if not math.isfinite(mean):  # on one process or all: every process gets here, and none updates
        raise UserError(bad_loss(accelerator, model, objective, suspect, step))
    return mean


def freeze_unreached(model: nn.Module, objective: Objective, row: dict) -> list[str]:
    """Freeze parameters that the objective never reaches, and name them: no process then waits for their gradients.

    XLNet's mask embedding in a classifier is one. Dropout draws from a forked random state.
    """
    with torch.random.fork_rng():
        device = next(model.parameters()).device
        objective.loss(model, send_to_device(objective.collate([row]), device)).backward()
    unreached = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for _, parameter in unreached:
        parameter.requires_grad_(False)
    model.zero_grad()
    return [name for name, _ in unreached]
