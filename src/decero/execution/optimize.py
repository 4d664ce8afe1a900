"""Speed up a run without changing its result: choose the attention kernel, pack rows, compile layers."""

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
from decero.execution.attention_kernels import WAS_REQUESTED, choose_attention
from decero.execution.flex_attention import FLEX
from decero.execution.objective import Objective, takes_selected_positions
from decero.execution.packed_forward import NOT_READ, prove
from decero.execution.token_detection import parts_of
from decero.execution.transformers_internals import GradientCheckpointingLayer, attention_of
from decero.execution.unwrap import unwrap

SHORTEST_ROW = 128  # shorter rows make matrix products slow and are harder to fill


def optimize(
    accelerator: Accelerator,
    model: PreTrainedModel,
    objective: Objective,
    dataset: Dataset | Stream,
    max_length: int,
    training: TrainingSection,
    quiet: bool = False,
    attention: str | None = None,
) -> Objective:
    """Choose the attention kernel and decide whether to pack rows; return the objective to train with.

    attention: the kernel that the settings ask for, if any. quiet: print only that it cannot be used. A generator
    and its discriminator both get the kernel, and rows are packed if that is exact for both.

    Raises UserError when `training.packing` is `on` and the model cannot be packed.
    """
    model.to(accelerator.device)  # type: ignore[arg-type]
    capacity = max(max_length, SHORTEST_ROW)
    row = capacity if training.packing != "off" else 0
    plain, device = objective, accelerator.device
    for part in parts_of(model):
        kernel_line = choose_attention(part, device, training.mixed_precision, row, attention)
        objective, packing_line = pack_if_proven(plain, part, dataset, capacity, training.packing)
        if not objective.packed:
            break
    if training.compile and objective.packed:
        objective = replace(objective, collate=replace(objective.collate, full=True))  # type: ignore[type-var]
    if not quiet:
        accelerator.print(f"{kernel_line}\n{packing_line}")
    elif WAS_REQUESTED in kernel_line:  # always report that a requested kernel is not used
        accelerator.print(kernel_line)
    return objective


def pack_if_proven(
    objective: Objective, model: nn.Module, dataset: Dataset | Stream, capacity: int, choice: str
) -> tuple[Objective, str]:
    """Pack rows of `capacity` tokens if `prove` finds no difference; return the objective and a line about it.

    `prove` tests the longest and the first texts of the data set. choice: `auto` packs if they agree, `on` requires
    packing, `off` never packs.

    Raises UserError for `on` if the results differ.
    """
    if choice == "off":
        return objective, "packing: off, rows are padded"
    if not objective.packable:
        if choice == "on":
            raise UserError("training.packing: rows of this task cannot be packed; set training.packing=auto")
        return objective, "packing: off, rows of this task cannot be packed"
    source = Rows(dataset)
    by_length = np.argsort(-objective.row_sizes(source.dataset).most, kind="stable")
    # Only texts longer than a sliding window reveal it, so the longest are tested.
    tested = list(dict.fromkeys([*by_length[:4].tolist(), *range(min(4, len(source)))]))
    rows = source.__getitems__([RowIndex(0, index) for index in tested])
    padded = objective.collate(rows)
    size = objective.size(padded, len(rows))
    longest_row = int(max(size.places, size.written_places)) // len(rows)
    test_capacity = max(capacity, 2 * longest_row)  # at least two texts in a row
    packed = Packed(objective.collate, test_capacity, per_text=objective.per_text).pack(padded)
    device = next(model.parameters()).device
    bare = unwrap(model)
    left_out = set(objective.per_text) - set(NOT_READ)  # a model does not take these
    inputs = [{n: t for n, t in batch.items() if n not in left_out} for batch in (padded, packed)]
    padded_here, packed_here = send_to_device(inputs, device)
    prove_here = partial(prove, model, padded_here, packed_here, per_text=bool(objective.per_text))
    why, change = prove_here(), ""
    if why is not None and "flex" in attention_of(bare):
        # The kernel may be the cause. Try sdpa first, because padding costs more.
        change = f"; attention: changed to sdpa, because with flex_attention {why}"
        bare.set_attn_implementation("sdpa")
        why = prove_here()
    if why is None:
        one_shape = attention_of(bare) == FLEX  # FlexAttention is compiled
        collate = Packed(objective.collate, capacity, per_text=objective.per_text, full=one_shape)
        line = f"packing: rows of {capacity} tokens, attention stays within each text{change}"
        return replace(objective, collate=collate), line
    if choice == "on":
        kind = bare.config.model_type
        raise UserError(f"training.packing: {kind} cannot be packed: {why}; set training.packing=off")
    return objective, f"packing: off, packed rows would change the result: {why}{change}"


def compile_layers(model: nn.Module) -> str:
    """Compile the forward pass of each layer in place. Weight names do not change, and hooks still run.

    Returns a line that says so, or why nothing was compiled: no C++ compiler, no Triton, a GPU too old for it.

    All layers share one compiled graph. The modules that objectives hook (projection, output of the last layer) are
    not compiled, and neither is a last layer that computes only scored positions: their number differs by batch. The
    first number of rows is compiled as a fixed shape, the second as a dynamic one. On two CPU cores both were as fast
    as no compilation.

    Raises UserError for a model whose layers cannot be found.
    """
    layers: list[nn.Module] = []
    for part in parts_of(model):
        own = [module for module in part.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not own:
            raise UserError(f"training.compile: cannot find the layers of {type(part).__name__}; set it to false")
        layers += own[:-1] if takes_selected_positions(part) else own
    try:
        torch.compile(lambda numbers: 2 * numbers + 1)(torch.ones(7, device=next(model.parameters()).device))
    except Exception as error:  # each backend has its own exceptions
        return f"compile: off, this machine cannot compile: {root_line(error)}"
    for layer in layers:
        layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]
    return f"compile: {len(layers)} layers, each new shape at its first use"
