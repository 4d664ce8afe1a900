"""Evaluate every example exactly once, at any batch size and on any number of processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from decero.data.collators import IGNORED
from decero.data.order import RowIndex, Rows
from decero.execution.objective import Batch, Objective, row_nats, scored_logits
from decero.execution.packed_forward import logits_of
from decero.training.sharding import evaluating

T = TypeVar("T")
BAR_AFTER = 5.0  # seconds


def late_bar(accelerator: Accelerator, **shown: Any) -> tqdm:
    """Return a progress bar of the first process that appears after BAR_AFTER seconds, and vanishes at the end."""
    disable = accelerator.process_index != 0
    return tqdm(**shown, delay=BAR_AFTER, leave=False, dynamic_ncols=True, disable=disable)


def _batches(
    accelerator: Accelerator, dataset: Dataset, objective: Objective, batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Yield the examples of this process, longest first: little padding, and out-of-memory errors come early."""
    rows, lengths = Rows(dataset), objective.row_sizes(dataset).most
    order = np.argsort(-lengths, kind="stable")[accelerator.process_index :: accelerator.num_processes]
    with late_bar(accelerator, total=len(order), desc="evaluate", unit="row") as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size].tolist()
            batch = objective.collate(rows.__getitems__([RowIndex(0, index) for index in indices]))
            yield indices, send_to_device(batch, accelerator.device)
            bar.update(len(indices))


@torch.no_grad()
def mean_loss(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, objective: Objective, batch_size: int
) -> dict[str, float]:
    """Return the mean loss over all scored items: {"loss": nats per item, "scored": number of items}."""
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    with evaluating(accelerator, model) as bare:
        for _, batch in _batches(accelerator, dataset, objective, batch_size):
            loss_and_count = float(objective.loss(bare, batch)), objective.count(batch)
            totals += torch.tensor(loss_and_count, dtype=torch.float64).to(totals)
    total, scored = accelerator.reduce(totals, reduction="sum").tolist()
    return {"loss": total / (scored or 1.0), "scored": scored}


@torch.no_grad()
def row_losses(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, objective: Objective, batch_size: int
) -> dict[str, np.ndarray]:
    """The loss of every row in order, summed over its scored tokens: {"nats": (rows,), "tokens": (rows,)}."""
    totals_R2 = torch.zeros(len(dataset), 2, dtype=torch.float64, device=accelerator.device)
    with evaluating(accelerator, model) as bare:
        for indices, batch in _batches(accelerator, dataset, objective, batch_size):
            tokens_B = (batch["labels"] != IGNORED).sum(dim=1)
            totals_R2[indices] = torch.stack([row_nats(bare, batch).double(), tokens_B.double()], dim=1)
    nats_R, tokens_R = accelerator.reduce(totals_R2, reduction="sum").cpu().numpy().T
    return {"nats": nats_R, "tokens": tokens_R.astype(np.int64)}


@torch.no_grad()
def predict_logits(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, objective: Objective, batch_size: int
) -> np.ndarray:
    """Return the logits of every example in data set order.

    (examples, labels) fp32, the same on every process. Where batches differ in width, the missing ones are -inf.
    """
    indices, logits = [], []
    with evaluating(accelerator, model) as bare:
        for places, batch in _batches(accelerator, dataset, objective, batch_size):
            indices += places
            logits.append(objective.logits(bare, batch).float())

    # Shares differ by at most one example. Shorter ones are padded with rows of index -1, which are dropped below.
    widest = torch.tensor([max((each.shape[1] for each in logits), default=1)], device=accelerator.device)
    width = int(accelerator.gather(widest).max())
    share = -(-len(dataset) // accelerator.num_processes)
    own_logits = torch.full((share, width), -torch.inf, device=accelerator.device)
    own_rows = torch.full((share,), -1, dtype=torch.long, device=accelerator.device)
    if logits:
        padded = [nn.functional.pad(each, (0, width - each.shape[1]), value=-torch.inf) for each in logits]
        own_logits[: len(indices)] = torch.cat(padded)
        own_rows[: len(indices)] = torch.tensor(indices, device=accelerator.device)
    gathered, rows = accelerator.gather(own_logits).cpu().numpy(), accelerator.gather(own_rows).cpu().numpy()
    ordered = np.empty((len(dataset), width), dtype=np.float32)
    ordered[rows[rows >= 0]] = gathered[rows >= 0]
    return ordered


@torch.no_grad()
def predict_rows(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, objective: Objective, batch_size: int,
    read_out: Callable[[nn.Module, Batch, list[int]], list[T]],
) -> list[T]:  # fmt: skip
    """Return what `read_out` says of each row, in data set order, the same on every process.

    read_out: (model, batch, numbers of its rows) -> one result per row. Results are pickled to the other processes.
    """
    found: list[tuple[int, T]] = []
    with evaluating(accelerator, model) as bare:
        for indices, batch in _batches(accelerator, dataset, objective, batch_size):
            found += zip(indices, read_out(bare, batch, indices), strict=True)
    every = dict(gather_object(found))
    return [every[index] for index in range(len(dataset))]


@torch.no_grad()
def predict_masked(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, objective: Objective, batch_size: int
) -> dict[str, np.ndarray]:
    """Return every scored position once, in order: {row, position, label, prediction, log_probability of the label}."""
    parts = [torch.empty(0, 5, dtype=torch.float64)]
    with evaluating(accelerator, model) as bare:
        for indices, batch in _batches(accelerator, dataset, objective, batch_size):
            scored_BL = batch["labels"] != IGNORED
            logits_NV = scored_logits(bare, batch, scored_BL)
            labels_N = batch["labels"][scored_BL]
            batch_rows_N, positions_N = scored_BL.nonzero(as_tuple=True)
            rows_N = torch.tensor(indices, device=batch_rows_N.device)[batch_rows_N]
            log_probability_N = -nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
            columns = rows_N, positions_N, labels_N, logits_NV.argmax(dim=-1), log_probability_N
            parts.append(torch.stack([c.double() for c in columns], dim=-1).cpu())
    table = torch.cat(gather_object([torch.cat(parts)])).numpy()
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    names = ("row", "position", "label", "prediction")
    return {n: table[:, i].astype(np.int64) for i, n in enumerate(names)} | {"log_probability": table[:, 4]}


@torch.no_grad()
def predict_tokens(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, objective: Objective, batch_size: int
) -> np.ndarray:
    """Return the logits of every scored token, in the order of rows and positions.

    (scored tokens, labels) fp32, the same on every process. For heads that label tokens, with padded or packed rows.
    """
    places, logits = [torch.empty(0, 2, dtype=torch.long)], []
    with evaluating(accelerator, model) as bare:
        width = bare.config.num_labels
        for indices, batch in _batches(accelerator, dataset, objective, batch_size):
            scored_BL = batch["labels"] != IGNORED
            logits.append(logits_of(bare, batch)[scored_BL].float().cpu())
            row_N, position_N = scored_BL.nonzero(as_tuple=True)
            if "text_ids" in batch:
                row_N, position_N = batch["text_ids"][scored_BL] - 1, batch["position_ids"][scored_BL]
            rows_N = torch.tensor(indices)[row_N.cpu()]
            places.append(torch.stack([rows_N, position_N.cpu()], dim=-1))
    parts = gather_object([(torch.cat(places).numpy(), torch.cat([torch.empty(0, width), *logits]).numpy())])
    place_N2 = np.concatenate([place for place, _ in parts])
    return np.concatenate([each for _, each in parts])[np.lexsort((place_N2[:, 1], place_N2[:, 0]))]


def evaluate_tokens(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, objective: Objective, batch_size: int, output: Path
) -> dict[str, float]:
    """Return loss and accuracy over the scored tokens; write each prediction to predictions.parquet."""
    table = predict_masked(accelerator, model, dataset, objective, batch_size)
    if accelerator.is_main_process:
        pd.DataFrame(table).to_parquet(output / "predictions.parquet")
    accuracy = (table["label"] == table["prediction"]).mean()
    return {"eval_loss": -float(table["log_probability"].mean()), "eval_accuracy": float(accuracy)}
