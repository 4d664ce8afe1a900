"""What a step costs, by arithmetic: operations, and bytes of weights, gradients and optimizer state."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decero.config.sections import OptimSection
from decero.data.sizes import BatchSize
from decero.execution.unwrap import unwrap

FORMULA = (
    "6 x (weights a token meets x places + vocabulary x width x scored + 2 x layers x width x places x row length)"
)
# Keys and values of cross-attention, whose input is what the encoder read: ours, BART and Marian, T5.
FROM_ENCODER = re.compile(r"(cross_attn|encoder_attn|EncDecAttention)\.[kv](_proj)?\.")


def flops(model: nn.Module, load: BatchSize, per_text: bool = False) -> float:
    """FORMULA, forward and backward (2 + 4 a weight and place: Kaplan et al. 2020, section 2.1).

    Weights are all but embeddings; a decoder's meet the written places, and what pools or classifies meets texts where
    `per_text`. With gradient checkpointing layers run forward twice, so 8 takes the place of 6.
    """
    bare = unwrap(model)
    config = bare.config
    checkpointed = [m for m in bare.modules() if getattr(m, "gradient_checkpointing", False)]
    twice = {id(p) for module in checkpointed for p in module.parameters()}
    projection = None if per_text else bare.get_output_embeddings()
    aside = {id(m.weight) for m in bare.modules() if isinstance(m, nn.Embedding)}
    aside |= {id(projection.weight)} if projection is not None else set()
    reading = {id(p) for p in bare.get_encoder().parameters()} if config.is_encoder_decoder else set()
    total = 6.0 * load.scored * projection.weight.numel() if projection is not None else 0.0
    for name, weight in bare.named_parameters():
        if id(weight) in aside:
            continue
        seen = load.places
        if config.is_encoder_decoder and id(weight) not in reading and not FROM_ENCODER.search(name):
            seen = load.written_places
        if per_text and ("pooler" in name or not name.startswith(f"{bare.base_model_prefix}.")):
            seen = load.examples
        total += (8 if id(weight) in twice else 6) * weight.numel() * seen
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    width = float(config.num_attention_heads * size if size else config.hidden_size)
    pairs = config.num_hidden_layers * load.pairs
    if config.is_encoder_decoder:
        layers: Any = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", 0)
        pairs += layers * (load.written_pairs + load.crossed_pairs)
    return total + (16 if twice else 12) * width * pairs


@dataclass(frozen=True)
class StaticMemory:
    """Bytes that a model and its optimizer hold between steps, and gradients within one."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer

    def sharded(self, processes: int) -> "StaticMemory":
        """What one of several processes holds under FSDP2: its share, and one thing whole at a time.

        That is the weights where a run begins and evaluates, or the gradients of a step of several micro-batches.
        """
        whole = max(self.weights, self.gradients)
        return StaticMemory(self.weights / processes + whole, self.gradients / processes, self.optimizer / processes)


def static_memory(model: nn.Module, optim: OptimSection) -> StaticMemory:
    """By arithmetic: every weight that is trained has a gradient, and as many moments as its optimizer keeps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return StaticMemory(
        sum(_bytes(t) for t in [*model.parameters(), *model.buffers()]),
        sum(_bytes(p) for p in trained),
        sum(_moments(p, optim) * p.element_size() for p in trained),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _moments(weight: Tensor, optim: OptimSection) -> int:
    """How many numbers the optimizer remembers of a weight."""
    arguments = optim.arguments
    if optim.name == "adafactor":  # rows and columns instead of a matrix (Shazeer & Stern 2018)
        factored = weight.dim() >= 2
        return (weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2]) if factored else weight.numel()
    copies = {"adamw": 2, "adam": 2, "sgd": 0, "rmsprop": 1}[optim.name]
    copies += sum(bool(arguments.get(name)) for name in ("amsgrad", "momentum", "centered"))
    return copies * weight.numel()


def logits_bytes(model: nn.Module, load: BatchSize, chunk: int = 512) -> float:
    """Scores of the vocabulary and their softmax in fp32, for the scored places of a chunk; nothing without a head."""
    projection = model.get_output_embeddings()  # type: ignore[operator]
    return 0.0 if projection is None else 8.0 * min(load.scored, chunk) * projection.weight.shape[0]


class SavedActivations:
    """Inside, counts the bytes that a forward pass keeps for the backward pass, weights not counted: `bytes`."""

    def __init__(self, model: nn.Module):
        self.known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> "SavedActivations":
        self.hooks.__enter__()
        return self

    def __exit__(self, *ended) -> None:
        self.hooks.__exit__(*ended)
