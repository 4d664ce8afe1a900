"""Build the training arms: stock transformers, tuned transformers, and decero (`ours`).

Stock runs as in the examples of transformers. Tuned uses the same optimizations as `ours`. `texts` are token rows, or
pictures for the kind of that name.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from accelerate.utils import convert_to_fp32, send_to_device
from datasets import Dataset
from torch import Tensor
from torch.profiler import record_function
from transformers import PreTrainedModel

from decero.benchmark.batches import Batch, Padded, as_stock_reads, make_batches, padded_batches
from decero.benchmark.image_batches import example_batches, picture_collator, stored_pictures
from decero.config.benchmark import TrainingArm, Workload
from decero.config.sections import OptimSection
from decero.errors import UserError
from decero.execution.attention_kernels import choose_attention
from decero.execution.image_objective import picture_classes
from decero.execution.objective import Objective, classification, masked_lm
from decero.execution.optimize import SHORTEST_ROW, compile_layers, pack_if_proven
from decero.training.optimizer import build_optimizer

ARMS: tuple[str, ...] = get_args(TrainingArm)
# Defaults of the Trainer: fused AdamW (adamw_torch_fused), no weight decay, gradients clipped at 1. For all arms but
# those of the example of pictures, which has no Trainer.
OPTIM = OptimSection(name="adamw", learning_rate=5e-5, weight_decay=0.0, max_grad_norm=1.0)


@dataclass
class Arm:
    """Hold one competitor of a training benchmark. A call trains it on one unit of batches.

    make: build the batches of a unit from token rows: collate, pad or pack, send to the device.
    mean_loss: (model, batch) -> mean loss over the scored items.
    says: what was chosen automatically, and why. max_grad_norm: to clip gradients at; None for no clipping.
    """

    model: PreTrainedModel
    make: Callable[[], list[Batch]]
    mean_loss: Callable[[PreTrainedModel, Batch], Tensor]
    bf16: bool
    optimizer: torch.optim.Optimizer
    says: list[str] = field(default_factory=list)
    max_grad_norm: float | None = OPTIM.max_grad_norm
    batches: list[Batch] = field(init=False)

    def __post_init__(self):
        self.batches = self.make()

    def __call__(self) -> None:
        for batch in self.make():
            self.step(batch)

    def step(self, batch: Batch) -> None:
        """Run forward, backward, clipping and update for one batch."""
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.mean_loss(self.model, batch)
        loss.backward()
        if self.max_grad_norm is not None:
            with record_function("clipping gradients"):  # a name for `operators`, which costs nothing elsewhere
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def plain_loss(self) -> float:
        """Return the mean loss of the first batch in fp32, without dropout."""
        self.model.eval()
        loss = float(self.mean_loss(self.model, self.batches[0]))
        self.model.train()
        return loss


def build_arms(
    work: Workload, pair: tuple[PreTrainedModel, PreTrainedModel], texts: Dataset, device: torch.device, seed: int,
    names: Sequence[str] = ARMS, precision: str = "bf16",
) -> dict[str, Arm]:  # fmt: skip
    """Build the named arms on the device, ready to train. Stock arms share model and optimizer.

    precision: `bf16` or `no`, of tuned and ours.

    stock: the stock class with its own loss on padded batches. For bf16 it uses autocast and converts outputs to fp32,
    as the Trainer does with accelerate. For pictures it decodes each file in each step. It has torch's AdamW without
    `fused` and without clipping, as the example without Trainer.
    tuned, ours: the defaults of a decero run in bf16. `optimize` chooses attention kernel and packing. The loss covers
    only scored positions and is fused with the projection. Without `work.tricks`, ours runs like stock fp32.
    """
    ours, stock = (model.to(device).train() for model in pair)  # type: ignore[arg-type]
    arms: dict[str, Arm] = {}
    if "tuned" in names:
        arms["tuned"] = _tuned(work, copy.deepcopy(stock), texts, device, seed, ours, precision)
    if "ours" in names and work.tricks:
        arms["ours"] = _tuned(work, ours, texts, device, seed, ours, precision)
    plain = [name for name in names if name.startswith("stock") or (name == "ours" and not work.tricks)]
    if plain:
        reads = example_batches if work.kind == "pictures" else padded_batches
        says = "pictures: decoded again for each step" if work.kind == "pictures" else f"padding: {work.padding}"
        clip = None if work.kind == "pictures" else OPTIM.max_grad_norm

        def make() -> list[Batch]:
            padded = reads(work, texts, ours.config, seed)
            return [send_to_device(as_stock_reads(work, batch), device) for batch in padded]

        optimizers = {name: _plain_optimizer(work, model) for name, model in (("stock", stock), ("ours", ours))}
        for name in plain:
            model, optimizer = (ours if name == "ours" else stock), optimizers[name.partition(" ")[0]]
            arms[name] = Arm(model, make, _as_the_trainer, name == "stock bf16", optimizer, [says], clip)
    return {name: arms[name] for name in ARMS if name in arms}


def _plain_optimizer(work: Workload, model: PreTrainedModel) -> torch.optim.Optimizer:
    if work.kind == "pictures":
        return torch.optim.AdamW(model.parameters(), lr=OPTIM.learning_rate, weight_decay=OPTIM.weight_decay)
    return build_optimizer(model, OPTIM)


def _as_the_trainer(model: PreTrainedModel, batch: Batch) -> Tensor:
    return convert_to_fp32(model(**batch)).loss


def _tuned(
    work: Workload, model: PreTrainedModel, texts: Dataset, device, seed: int, ours: PreTrainedModel, precision: str
) -> Arm:
    objective, says = tuned_objective(work, model, texts, device, seed, ours, precision)
    if work.compile:
        says.append(compile_layers(model))
    if work.kind == "pictures":
        texts = stored_pictures(texts, ours.config)

    def make() -> list[Batch]:
        return [send_to_device(batch, device) for batch in make_batches(work, texts, objective.collate)]

    def mean_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        return objective.loss(model, batch) / objective.count(batch)

    return Arm(model, make, mean_loss, precision == "bf16", build_optimizer(model, OPTIM), says)


def tuned_objective(
    work: Workload, model: PreTrainedModel, texts: Dataset, device: torch.device, seed: int, ours: PreTrainedModel,
    precision: str = "bf16",
) -> tuple[Objective, list[str]]:  # fmt: skip
    """Choose kernel and packing as a decero run in `precision` does; return the objective, and lines that say so."""
    if (
        work.kind == "pictures"
    ):  # all rows have one length, so there is nothing to pack, and no vocabulary to project to
        kernel = choose_attention(model, device, precision)
        return picture_classes(picture_collator(ours.config, seed)), [kernel, "pictures: decoded once"]
    collate = Padded(work, ours.config, seed)
    if work.kind == "classification":
        objective = classification(collate, "single_label_classification")
    else:
        objective = masked_lm(collate)
    capacity = max(work.length, SHORTEST_ROW)
    kernel = choose_attention(model, device, precision, capacity)
    objective, packing = pack_if_proven(objective, model, texts, capacity, "auto")
    if work.compile and objective.packed:
        objective = replace(objective, collate=replace(objective.collate, full=True))  # type: ignore[type-var]
    return objective, [kernel, packing]


def check_equal(name: str, losses: Mapping[str, float], device: torch.device) -> None:
    """Raise UserError if the losses of the arms differ on the same batch, before training.

    Then the comparison would not be fair. The tolerance on a GPU is larger, because it multiplies in TF32.
    """
    low, high = min(losses.values()), max(losses.values())
    tolerance = 1e-5 if device.type == "cpu" else 1e-3
    if not high - low <= tolerance * max(1.0, abs(high)):
        values = ", ".join(f"{arm} {loss:.6f}" for arm, loss in losses.items())
        raise UserError(f"works.{name}: the losses of the arms differ, so they do not compute the same: {values}")
