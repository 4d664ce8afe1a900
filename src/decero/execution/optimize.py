"""What a run saves without changing its result: the fastest kernel, packed rows. Chosen before it starts, and said."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from decero.config.sections import TrainingSection
from decero.data.order import RowIndex, Rows
from decero.data.packing import Packed
from decero.data.stream import Stream
from decero.errors import UserError, root_line
from decero.execution.attention_kernels import choose_attention
from decero.execution.flex_attention import FLEX
from decero.execution.objective import Objective
from decero.execution.packed_forward import prove
from decero.execution.transformers_internals import GradientCheckpointingLayer, attention_of
from decero.execution.unwrap import unwrap

SHORTEST_ROW = 128  # below that the matrices are too thin to be fast, and short rows are harder to fill


def optimize(
    accelerator: Accelerator,
    model: PreTrainedModel,
    objective: Objective,
    dataset: Dataset | Stream,
    max_length: int,
    training: TrainingSection,
    quiet: bool = False,
) -> Objective:
    """Choose the attention kernel and the layout of the rows; returns the objective to train with.

    Raises UserError when `training.packing` is `on` and the model cannot be packed.
    """
    model.to(accelerator.device)  # type: ignore[arg-type]
    capacity = max(max_length, SHORTEST_ROW)
    packs = capacity if training.packing != "off" else 0
    kernel = choose_attention(model, accelerator.device, training.mixed_precision, packs)
    objective, said = pack_if_proven(objective, model, dataset, capacity, training.packing)
    if training.compile and objective.packed:
        objective = replace(objective, collate=replace(objective.collate, full=True))  # type: ignore[type-var]
    if not quiet:
        accelerator.print(f"{kernel}\n{said}")
    elif "was asked for" in kernel:  # and could not be had: that is never left unsaid
        accelerator.print(kernel)
    return objective


def pack_if_proven(
    objective: Objective, model: nn.Module, dataset: Dataset | Stream, capacity: int, choice: str
) -> tuple[Objective, str]:
    """The objective over packed rows of `capacity` tokens, and a line that says so; or as it was, and the reason.

    choice: `auto` packs where `prove` finds it equal on the longest and the first texts of the data set, `on` insists,
    `off` does not.

    Raises UserError for `on` where it is not equal.
    """
    if choice == "off":
        return objective, "packing: off, rows are padded"
    if not objective.packable:
        if choice == "on":
            raise UserError("training.packing: rows of this task cannot share one; set training.packing=auto")
        return objective, "packing: off, each row stands alone"
    source = Rows(dataset)
    longest = np.argsort(-objective.row_sizes(source.dataset).most, kind="stable")[
        :4
    ]  # a window is seen by what is longer
    some = list(dict.fromkeys([*longest.tolist(), *range(min(4, len(source)))]))
    rows = source.__getitems__([RowIndex(0, index) for index in some])
    padded = objective.collate(rows)
    size = objective.size(padded, len(rows))
    longest_row = int(max(size.places, size.written_places)) // len(rows)
    roomy = max(capacity, 2 * longest_row)  # two texts a row
    trial = Packed(objective.collate, roomy, per_text=objective.per_text).pack(padded)
    device = next(model.parameters()).device
    bare = unwrap(model)
    proven = partial(
        prove, model, send_to_device(padded, device), send_to_device(trial, device), per_text=bool(objective.per_text)
    )
    why, after_all = proven(), ""
    if why is not None and "flex" in attention_of(bare):
        # The kernel is what may be at fault, and padding is the dearer way out.
        after_all = f"; attention: sdpa after all, for under flex_attention {why}"
        bare.set_attn_implementation("sdpa")
        why = proven()
    if why is None:
        one_shape = attention_of(bare) == FLEX  # it is compiled
        collate = Packed(objective.collate, capacity, per_text=objective.per_text, full=one_shape)
        return replace(
            objective, collate=collate
        ), f"packing: rows of {capacity} tokens; no text sees another{after_all}"
    if choice == "on":
        kind = bare.config.model_type
        raise UserError(f"training.packing: {kind} cannot be packed: {why}; set training.packing=off")
    return objective, f"packing: off, for packed rows would not give the same: {why}{after_all}"


def compile_layers(model: nn.Module) -> str:
    """Compile the forward pass of each layer, in place: names of weights stay, and so do hooks, which run around it.

    Returns a line that says so, or why nothing was compiled: no C++ compiler, no Triton, a GPU too old for it.

    The layers are one piece of code, compiled once for all of them; what objectives hook into (projection, last layer's
    output) is left as it was. The first number of rows is compiled for as it is, a second one for any number; on two
    CPU cores either was as fast as the other and as no compilation at all.

    Raises UserError for a model whose layers cannot be told.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"training.compile: cannot tell which are the layers of {type(model).__name__}; leave it out")
    try:
        torch.compile(lambda numbers: 2 * numbers + 1)(torch.ones(7, device=next(model.parameters()).device))
    except Exception as error:  # each backend has its own
        return f"compile: off, for this machine cannot: {root_line(error)}"
    for layer in layers:
        layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]
    return f"compile: {len(layers)} layers, each shape when it first comes"
