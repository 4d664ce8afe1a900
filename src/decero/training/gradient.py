"""Compute the gradient of one step from its micro-batches, and recover from running out of memory."""

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
from decero.execution.random_state import random_state, restore_random_state
from decero.execution.saving import bad_weight
from decero.execution.unwrap import unwrap
from decero.training.data_loader import MicroBatch, StepLoader
from decero.training.memory import out_of_memory
from decero.training.sharding import Sharded, full, loss_of, unsharded

LOWER = "lower optim.learning_rate, raise optim.num_warmup_steps or set training.mixed_precision=no"
MEND = f"nothing was updated; {LOWER}"


class Gradient(NamedTuple):
    """What `backward` reports: mean loss, tokens (both of all processes), and the examples of this process."""

    loss: float
    tokens: int
    indices: list[int]


def backward(
    accelerator: Accelerator, model: nn.Module, objective: Objective, loader: StepLoader, step: int
) -> Gradient:
    """Set the gradients to those of the mean loss over every scored item of every process.

    Each process runs all its micro-batches without communication. Then one gather collects the results, and the
    gradients are summed only if every process succeeded. If one ran out of memory, every process drops its gradients,
    restores the random state of the start of the step, and repeats it with micro-batches of half the failed size. They
    stay that small. DistributedDataParallel overlaps the sum with the last backward pass; there, a process that runs
    out of memory would leave the others waiting forever. This loop gives up the overlap to avoid that.

    Sharded processes communicate at every layer, so for them running out of memory ends the run. Their gradients are
    summed, shard by shard, during the backward pass of the last micro-batch.

    Raises UserError on all processes when a single example does not fit, and when the loss is not finite.
    """
    random_state_before = random_state()
    while True:
        micro_batches = loader.at(step)
        sizes = [micro.size(objective) for micro in micro_batches]
        counts = torch.tensor([(size.scored, size.tokens) for size in sizes], dtype=torch.float64).sum(dim=0)
        if accelerator.num_processes > 1:  # alone, the numbers stay on the CPU, which then need not wait for the GPU
            counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
        scored, tokens = counts.tolist()
        losses, failed = accumulate(accelerator, model, objective, micro_batches, scored or 1.0)
        if failed:
            model.zero_grad()
            clear_device_cache(garbage_collection=True)
        failed_rows = failed.indices if failed else []
        own_result = [float(sum(losses)), loader.split.size(failed_rows), len(failed_rows)]
        results = accelerator.gather(
            torch.tensor([own_result], dtype=torch.float64, device=accelerator.device)
        ).tolist()
        too_large = [(int(size), examples) for _, size, examples in results if examples]
        if not too_large:
            break
        model.zero_grad()
        restore_random_state(random_state_before)
        accelerator.print(f"out of memory at step {step + 1}: {halve(model, loader, too_large, step)}")
    loss = sum(total for total, _, _ in results) / (scored or 1.0)
    if not math.isfinite(loss):  # the sum is the same everywhere, so every process stops before the update
        check_weights(accelerator, model, step)
        suspect = next((m for m, own in zip(micro_batches, losses, strict=True) if not torch.isfinite(own)), None)
        raise UserError(bad_loss(accelerator, model, objective, suspect, step))
    sum_gradients(accelerator, model)
    return Gradient(loss, int(tokens), [index for micro in micro_batches for index in micro.indices])


def accumulate(
    accelerator: Accelerator, model: nn.Module, objective: Objective, micro_batches: list[MicroBatch], scored: float
) -> tuple[list[Tensor], MicroBatch | None]:
    """Accumulate the gradient of each micro-batch. Returns the losses, and the micro-batch that did not fit."""
    losses: list[Tensor] = []
    for micro in micro_batches:
        try:
            with accelerator.autocast():  # covers the projection and the encoder, called outside `forward`
                batch = send_to_device(micro.batch, accelerator.device)
                loss = loss_of(model, objective.loss, batch, last=micro is micro_batches[-1]) * micro.weight
            accelerator.backward(loss / scored)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if isinstance(model, Sharded):  # the others wait inside a layer until the launcher stops them
                line = f"out of memory: sharded processes cannot repeat a step; {memory_advice(model)}, then --resume"
                if not accelerator.is_main_process:  # the main process prints its own UserError
                    print(f"error: {line}", file=sys.stderr, flush=True)
                raise UserError(line) from error
            return losses, micro
        losses.append(loss.detach())
    return losses, None


def halve(model: nn.Module, loader: StepLoader, too_large: list[tuple[int, float]], step: int) -> str:
    """Halve the micro-batch size, from the smallest that did not fit; return a line that says so.

    too_large: (size, examples) of each failed micro-batch. Raises UserError when one of them was a single example.
    """
    if any(examples == 1 for _, examples in too_large):
        raise UserError(f"out of memory at step {step + 1}: one example alone does not fit; {memory_advice(model)}")
    size, _ = min(too_large)
    loader.limit(-(-size // 2))
    return f"micro-batches of {loader.split.limit} instead of {size} {loader.unit} from here on"


def memory_advice(model: nn.Module) -> str:
    """Return how to make one example take less memory."""
    smaller = "lower training.per_device_batch_size or per_device_tokens, " if isinstance(model, Sharded) else ""
    if getattr(unwrap(model), "is_gradient_checkpointing", False):
        return f"{smaller}lower data.max_length or take a smaller model"
    return f"{smaller}set training.gradient_checkpointing=true or lower data.max_length"


def sum_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """Sum the gradients over processes; shards are summed already. Missing gradients become zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes > 1 and not isinstance(model, Sharded):
        for work in [torch.distributed.all_reduce(p.grad, async_op=True) for p in parameters]:
            work.wait()


def freeze_unreached(accelerator: Accelerator, model: nn.Module, objective: Objective, row: dict) -> list[str]:
    """Freeze parameters that the objective never uses, so that weight decay leaves them alone; return their names.

    Example: XLNet's mask embedding in a classifier. What one example does not reach in training, where LayerDrop skips
    layers at random, is tried again as in evaluation. Experts of a mixture stay: another example uses others. Dropout
    draws from a forked random state, and batch norms count nothing.

    Raises UserError on all processes when one of them runs out of memory.
    """
    if not _reaches(accelerator, model, objective, row, training=True):
        raise UserError(f"out of memory before the first step: one example alone does not fit; {memory_advice(model)}")
    named = {n: p for n, p in unwrap(model).named_parameters() if p.requires_grad and "expert" not in n}

    def unreached() -> list[str]:
        everywhere = set.intersection(*map(set, gather_object([[n for n, p in named.items() if p.grad is None]])))
        return [name for name in named if name in everywhere]

    # without gradient checkpointing, the second try may need too much memory; then nothing is frozen
    fits = not unreached() or _reaches(accelerator, model, objective, row, training=False)
    frozen = unreached() if fits else []
    for name in frozen:
        named[name].requires_grad_(False)
    model.zero_grad()
    return frozen


def _reaches(accelerator: Accelerator, model: nn.Module, objective: Objective, row: dict, training: bool) -> bool:
    """Give gradients to what one example reaches; return whether it fits into the memory of every process."""
    was = model.training
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # a batch of one cannot train it
            module.eval()
    # cudnn computes no gradient of a recurrent network in evaluation
    with torch.random.fork_rng(), accelerator.autocast(), torch.backends.cudnn.flags(enabled=training):
        row_alone = MicroBatch(objective.collate([row]), [0], 1)
        _, failed = accumulate(accelerator, model, objective, [row_alone], 1.0)
    model.train(was)
    return not accelerator.gather(torch.tensor([failed is not None], device=accelerator.device)).any()


def check_weights(accelerator: Accelerator, model: nn.Module, done: int) -> None:
    """Check the weights after `done` steps. Call it before they are saved or scored. All processes must call it.

    Raises UserError on all processes when a weight is not finite.
    """
    found = next(filter(None, gather_object([bad_weight(unwrap(model))])), None)
    if found and done:
        raise UserError(
            f"step {done}: {found} holds NaN or infinity, so it is not saved; earlier checkpoints are kept; {LOWER}"
        )


def bad_loss(accelerator: Accelerator, model: nn.Module, objective: Any, suspect: Any, step: int) -> str:
    """Describe a loss that is not finite. All processes must call it; those with a suspect batch share the details."""
    found = []
    with unsharded(accelerator, model) as bare:
        if suspect is not None:
            layer = first_bad_layer(bare, objective, send_to_device(suspect.batch, accelerator.device))
            examples = _first_few(suspect.indices)
            detail = f"on examples {examples}; first bad output: {layer}"
            found = [f"step {step + 1}: the loss is not finite {detail}; {MEND}"]
    return next(iter(gather_object(found)), f"step {step + 1}: the loss is not finite; {MEND}")


def bad_gradient(model: nn.Module, indices: list[int], step: int) -> str:
    """Describe a gradient that is not finite although the loss is. All processes must call it."""
    bare = unwrap(model)
    bad = (n for n, p in bare.named_parameters() if p.grad is not None and not torch.isfinite(full(p.grad)).all())
    name = next(bad, "some parameter")
    return f"step {step + 1}: the gradient of {name} is not finite on examples {_first_few(indices)}; {MEND}"


def _first_few(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")


@torch.no_grad()
def first_bad_layer(model: nn.Module, objective: Any, batch: dict[str, torch.Tensor]) -> str:
    """Return the name of the first module, in order of computation, whose output has a NaN or an infinity."""
    bad: list[str] = []

    def check_output(name: str):
        def hook(_module, _inputs, output):
            tensors = output if isinstance(output, tuple | list) else [output]
            floats = [t for t in tensors if torch.is_tensor(t) and t.is_floating_point()]
            if not bad and not all(torch.isfinite(t).all() for t in floats):
                bad.append(name)

        return hook

    hooks = [module.register_forward_hook(check_output(name)) for name, module in model.named_modules() if name]
    try:
        objective.loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else "the loss itself"
