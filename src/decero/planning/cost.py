"""Calculate the cost of a step: operations, and bytes of weights, gradients and optimizer state."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from decero.config.devices import Device
from decero.config.sections import OptimSection
from decero.data.order import RowIndex, Rows
from decero.data.sizes import BatchSize
from decero.execution.adapters import is_computed
from decero.execution.objective import Objective
from decero.execution.token_detection import parts_of
from decero.execution.transformers_internals import head_sizes
from decero.execution.unwrap import unwrap
from decero.training.optimizer import DEFAULTS, layer_matrices

FORMULA = "6 x (weights x positions + vocabulary x width x scored + 2 x layers x width x positions x row length)"
# Keys and values of cross-attention, which read the encoder output: decero; BART and Marian; T5.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names of their number in configurations
FROM_ENCODER = re.compile(r"(cross_attn|encoder_attn|EncDecAttention)\.[kv](_proj)?\.")


def flops(model: nn.Module, load: BatchSize, per_text: bool = False, teacher: nn.Module | None = None) -> float:
    """Return the FLOPs of a step by FORMULA: 2 + 4 per weight and position (Kaplan et al. 2020, section 2.1).

    A frozen weight has no gradient, so 4 instead of 6. Embeddings do not count as weights. Decoder weights see the
    written positions, or those of the text where a classifier's decoder reads it again; with `per_text`, pooler and
    classifier see one position per text. Of a mixture of experts, a position uses `num_experts_per_tok`. With gradient
    checkpointing layers run forward twice: 2 more. Recurrent layers and convolutions have no pairs of tokens. Of a
    generator and its discriminator, both count. A teacher runs forward only.
    """
    taught = 0.0 if teacher is None else _flops(unwrap(teacher), load, per_text, forward_only=True)
    return taught + sum(_flops(part, load, per_text) for part in parts_of(model))


def _flops(bare: Any, load: BatchSize, per_text: bool, forward_only: bool = False) -> float:
    config = bare.config
    decodes = config.is_encoder_decoder and any(".decoder." in name for name, _ in bare.named_parameters())
    if decodes and not load.written_places:  # a classifier, whose decoder reads the text again
        load = replace(load, written_places=load.places, written_pairs=load.pairs, crossed_pairs=load.pairs)
    checkpointed = [m for m in bare.modules() if getattr(m, "gradient_checkpointing", False)]
    twice = {id(p) for module in checkpointed for p in module.parameters()}
    projection = None if per_text else bare.get_output_embeddings()
    excluded = {id(m.weight) for m in bare.modules() if isinstance(m, nn.Embedding)}
    excluded |= {id(projection.weight)} if projection is not None else set()
    encoder = {id(p) for p in bare.get_encoder().parameters()} if config.is_encoder_decoder else set()
    total = 0.0
    if projection is not None:
        passes = 2 if forward_only else 6 if projection.weight.requires_grad else 4
        total = float(passes) * load.scored * projection.weight.numel()
    for name, weight in bare.named_parameters():
        if id(weight) in excluded or not is_computed(name):
            continue
        positions = load.places
        if config.is_encoder_decoder and id(weight) not in encoder and not FROM_ENCODER.search(name):
            positions = load.written_places
        if per_text and ("pooler" in name or not name.startswith(f"{bare.base_model_prefix}.")):
            positions = load.examples
        passes = (8 if id(weight) in twice else 6) - (0 if weight.requires_grad else 2)
        passes = 2 if forward_only else passes
        total += passes * weight.numel() * positions * _used_share(name, weight, config)
    if getattr(config, "mixer_type", "attention") != "attention":  # no scores between pairs of tokens
        return total
    sizes = head_sizes(config)
    pairs = float(sum(sizes)) * load.pairs
    if config.is_encoder_decoder:
        layers: Any = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", 0)
        pairs += sizes[0] * layers * (load.written_pairs + load.crossed_pairs)
    passes = 4 if forward_only else 16 if twice else 12
    return total + passes * config.num_attention_heads * pairs


def _used_share(name: str, weight: Tensor, config: Any) -> float:
    """Return the share of a weight that one position uses: below 1 for the experts of a mixture."""
    if ".experts." not in name:
        return 1.0
    all_of_them = next((n for each in EXPERTS if (n := getattr(config, each, None))), weight.shape[0])
    return float((getattr(config, "num_experts_per_tok", None) or 1) / all_of_them)  # Switch has one a token


def picture_flops(model: nn.Module, objective: Objective, rows: Dataset) -> float:
    """Return the FLOPs of training on one picture, as torch counts them in a forward pass: three times those.

    Any model can be counted; a formula would have to know its layers. A backward pass costs two forward passes.
    """
    row = Rows(rows).__getitems__([RowIndex(0, 0)])
    batch = send_to_device(objective.collate(row), next(model.parameters()).device)
    with torch.no_grad(), torch.random.fork_rng(), FlopCounterMode(display=False) as counter:
        objective.loss(model, batch)
    return 3.0 * counter.get_total_flops()


@dataclass(frozen=True)
class StaticMemory:
    """Bytes of weights and optimizer state, and of the gradients of a step."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer

    def sharded(self, processes: int) -> "StaticMemory":
        """Return the bytes on one of several processes under FSDP2: its share, plus one full copy at a time.

        The full copy is the weights (at the start and to evaluate) or the gradients (with several micro-batches).
        """
        whole = max(self.weights, self.gradients)
        return StaticMemory(self.weights / processes + whole, self.gradients / processes, self.optimizer / processes)


def seconds_on(
    device: Device, devices: int, precision: str, width: int, step_flops: float, static: StaticMemory, sharded: bool
) -> float:
    """Return the seconds of a step on accelerators: its products, and the optimizer that reads and writes all state.

    width: hidden_size. static: of the whole model. Communication and the start of kernels are not included.
    """
    share = static.total / (devices if sharded else 1)
    return step_flops / (devices * device.flops(precision, width)) + 2 * share / device.bandwidth


def width_of(model: nn.Module) -> int:
    """Return the width of a model's layers; the widest one's where they differ, as in a pyramid of pictures."""
    config: Any = unwrap(model).config
    for name in ("hidden_size", "d_model", "hidden_sizes", "embed_dim"):
        if found := getattr(config, name, None):
            return int(max(found) if isinstance(found, list | tuple) else found)
    return max(p.shape[-1] for p in model.parameters() if p.dim() >= 2)


def static_memory(model: nn.Module, optim: OptimSection) -> StaticMemory:
    """Calculate the static memory: trained weights have a gradient and the moments of their optimizer."""
    trained = [p for p in model.parameters() if p.requires_grad]
    orthogonalized = {id(p) for p in layer_matrices(model)} if optim.name == "muon" else set()
    return StaticMemory(
        weight_bytes(model),
        sum(_bytes(p) for p in trained),
        sum(_moments(p, optim, id(p) in orthogonalized) * p.element_size() for p in trained),
    )


def weight_bytes(model: nn.Module) -> float:
    """Return the bytes of parameters and buffers."""
    return float(sum(_bytes(tensor) for tensor in [*model.parameters(), *model.buffers()]))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _moments(weight: Tensor, optim: OptimSection, orthogonalized: bool) -> int:
    """Return how many numbers the optimizer stores for a weight. orthogonalized: by Muon."""
    if optim.name == "adafactor":  # means of rows and columns instead of a matrix (Shazeer & Stern 2018)
        factored = weight.dim() >= 2
        return (weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2]) if factored else weight.numel()
    if optim.name == "muon":
        return (1 if orthogonalized else 2) * weight.numel()
    arguments = DEFAULTS.get(optim.name, {}) | optim.arguments
    copies = {"adamw": 2, "adam": 2, "sgd": 0, "momentum": 0, "rmsprop": 1, "schedule_free_adamw": 2}[optim.name]
    copies += sum(bool(arguments.get(name)) for name in ("amsgrad", "momentum", "centered"))
    return copies * weight.numel()


def logits_bytes(model: nn.Module, load: BatchSize, chunk: int) -> float:
    """Return the bytes of logits and softmax in fp32 for one chunk of scored positions; 0 without a projection."""
    projection = model.get_output_embeddings()  # type: ignore[operator]
    return 0.0 if projection is None else 8.0 * min(load.scored, chunk) * projection.weight.shape[0]


class FusedAttention(TorchFunctionMode):
    """Turn off the dropout of sdpa inside, because with it the kernel of a CPU saves all pairs of tokens.

    The kernels of accelerators never do (Dao et al. 2022), so this is what an accelerator saves.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention and "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


class SavedActivations:
    """Count inside the `bytes` that a forward pass saves for the backward pass, without weights."""

    def __init__(self, model: nn.Module):
        self.known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> "SavedActivations":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)
