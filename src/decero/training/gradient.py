"""One step's gradient: micro-batches in, accumulated gradients and the mean loss out, whatever the memory holds."""

import math
import sys
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from decero.errors import UserError
from decero.execution.objective import Objective
from decero.execution.unwrap import unwrap
from decero.training.checkpoint import random_state, restore_random_state
from decero.training.data_loader import MicroBatch, StepLoader
from decero.training.sharding import Sharded, full, loss_of, whole

MEND = "nothing was updated; lower optim.learning_rate, raise optim.num_warmup_steps or set training.mixed_precision=no"


class Gradient(NamedTuple):
    """What is known of a gradient that now stands in the parameters: loss, tokens, examples of this process."""

    loss: float
    tokens: int
    indices: list[int]


def backward(
    accelerator: Accelerator, model: nn.Module, objective: Objective, loader: StepLoader, step: int
) -> Gradient:
    """Leave in the parameters the gradient of the mean loss over every scored item of every process.

    Each process runs all its micro-batches without a word to the others. Then all say in one gather how it went, and
    only when it went well everywhere are the gradients summed. When memory ran out somewhere, every process forgets
    what it has, goes back to the random state of the step's start, and begins again with micro-batches half the size
    of the one that failed; they stay that small. DistributedDataParallel sums while the last backward pass still runs,
    and there a process without memory would leave the others waiting for ever; that overlap is the price.

    Sharded, processes speak at every layer, so there a step without memory ends the run; gradients are summed, shard by
    shard, as the last micro-batch's backward pass goes.

    Raises UserError, on all processes, when one example alone does not fit, and when the loss is not finite.
    """
    before = random_state()
    while True:
        micro_batches = loader.at(step)
        sizes = [micro.size(objective) for micro in micro_batches]
        counts = torch.tensor([(size.scored, size.tokens) for size in sizes], dtype=torch.float64).sum(dim=0)
        scored, tokens = accelerator.reduce(counts.to(accelerator.device), reduction="sum").tolist()
        losses, failed = accumulate(accelerator, model, objective, micro_batches, max(scored, 1.0))
        if failed:
            model.zero_grad()
            clear_device_cache(garbage_collection=True)
        where = failed.indices if failed else []
        mine = [float(sum(losses)), loader.split.size(where), len(where)]
        said = torch.tensor([mine], dtype=torch.float64, device=accelerator.device)
        everyone = accelerator.gather(said).tolist()
        too_large = [(int(size), examples) for _, size, examples in everyone if examples]
        if not too_large:
            break
        model.zero_grad()
        restore_random_state(before)
        accelerator.print(f"out of memory at step {step + 1}: {halve(model, loader, too_large, step)}")
    loss = sum(total for total, _, _ in everyone) / max(scored, 1.0)
    if not math.isfinite(loss):  # on one process or all: every process gets here, and none updates
        suspect = next((m for m, each in zip(micro_batches, losses, strict=True) if not torch.isfinite(each)), None)
        raise UserError(bad_loss(accelerator, model, objective, suspect, step))
    add_up(accelerator, model)
    return Gradient(loss, int(tokens), [index for micro in micro_batches for index in micro.indices])


def accumulate(
    accelerator: Accelerator, model: nn.Module, objective: Objective, micro_batches: list[MicroBatch], scored: float
) -> tuple[list[Tensor], MicroBatch | None]:
    """Add the gradient of each micro-batch to the parameters. Returns the losses, and what memory was too small for."""
    losses: list[Tensor] = []
    for micro in micro_batches:
        try:
            with accelerator.autocast():  # the projection and the encoder are called beside the model's own forward
                batch = send_to_device(micro.batch, accelerator.device)
                loss = loss_of(model, objective.loss, batch, last=micro is micro_batches[-1]) * micro.weight
            accelerator.backward(loss / scored)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if isinstance(model, Sharded):  # the others wait in the midst of a layer, until the launcher ends them
                line = f"out of memory: sharded processes cannot begin a step again; {mend(model)}, then --resume"
                if not accelerator.is_main_process:  # which alone says what all have met
                    print(f"error: {line}", file=sys.stderr, flush=True)
                raise UserError(line) from error
            return losses, micro
        losses.append(loss.detach())
    return losses, None


def halve(model: nn.Module, loader: StepLoader, too_large: list[tuple[int, float]], step: int) -> str:
    """Make micro-batches half as large as the smallest that did not fit; returns what is so from here on.

    too_large: size and examples of each that failed. Raises UserError when one of them was a single example.
    """
    if any(examples == 1 for _, examples in too_large):
        raise UserError(f"out of memory at step {step + 1}: one example alone does not fit; {mend(model)}")
    size, _ = min(too_large)
    loader.limit(-(-size // 2))
    return f"micro-batches of {loader.split.limit} instead of {size} {loader.unit} from here on"


def out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or a CPU had no memory left; the latter has no exception of its own."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in said for sign in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    )


def mend(model: nn.Module) -> str:
    """What makes one example take less memory."""
    smaller = "lower training.per_device_batch_size or per_device_tokens, " if isinstance(model, Sharded) else ""
    if getattr(unwrap(model), "is_gradient_checkpointing", False):
        return f"{smaller}lower data.max_length or take a smaller model"
    return f"{smaller}set training.gradient_checkpointing=true or lower data.max_length"


def add_up(accelerator: Accelerator, model: nn.Module) -> None:
    """Sum the gradients over processes, shards are summed already. A parameter that no example reached has zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes > 1 and not isinstance(model, Sharded):
        for work in [torch.distributed.all_reduce(p.grad, async_op=True) for p in parameters]:
            work.wait()


def freeze_unreached(accelerator: Accelerator, model: nn.Module, objective: Objective, row: dict) -> list[str]:
    """Freeze parameters that the objective never reaches, and name them: no optimizer then decays them.

    XLNet's mask embedding in a classifier is one. Dropout draws from a forked random state.

    Raises UserError, on all processes, when memory runs out on one of them.
    """
    with torch.random.fork_rng(), accelerator.autocast():
        row_alone = MicroBatch(objective.collate([row]), [0], 1)
        _, failed = accumulate(accelerator, model, objective, [row_alone], 1.0)
    if accelerator.gather(torch.tensor([failed is not None], device=accelerator.device)).any():
        raise UserError(f"out of memory before the first step: one example alone does not fit; {mend(model)}")
    named = unwrap(model).named_parameters()
    unreached = [(name, p) for name, p in named if p.requires_grad and p.grad is None]
    for _, parameter in unreached:
        parameter.requires_grad_(False)
    model.zero_grad()
    return [name for name, _ in unreached]


def bad_loss(accelerator: Accelerator, model: nn.Module, objective: Any, suspect: Any, step: int) -> str:
    """The line for a loss that is not finite; every process calls it, the one that met the loss tells the others."""
    found = []
    with whole(accelerator, model) as bare:
        if suspect is not None:
            layer = first_bad_layer(bare, objective, send_to_device(suspect.batch, accelerator.device))
            where = f"on examples {_some(suspect.indices)}; first bad output: {layer}"
            found = [f"step {step + 1}: the loss is not finite {where}; {MEND}"]
    return next(iter(gather_object(found)), f"step {step + 1}: the loss is not finite; {MEND}")


def bad_gradient(model: nn.Module, indices: list[int], step: int) -> str:
    """The line for a gradient that is not finite though the loss was; every process calls it."""
    bare = unwrap(model)
    bad = (n for n, p in bare.named_parameters() if p.grad is not None and not torch.isfinite(full(p.grad)).all())
    name = next(bad, "some parameter")
    return f"step {step + 1}: the gradient of {name} is not finite on examples {_some(indices)}; {MEND}"


def _some(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")


@torch.no_grad()
def first_bad_layer(model: nn.Module, objective: Any, batch: dict[str, torch.Tensor]) -> str:
    """The name of the first module, in order of computation, whose output holds a NaN or an infinity."""
    bad: list[str] = []

    def watch(name: str):
        def hook(_module, _inputs, output):
            tensors = output if isinstance(output, tuple | list) else [output]
            floats = [t for t in tensors if torch.is_tensor(t) and t.is_floating_point()]
            if not bad and not all(torch.isfinite(t).all() for t in floats):
                bad.append(name)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        objective.loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else "the loss itself"
