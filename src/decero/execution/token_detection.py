"""Replaced token detection: a generator fills holes, a discriminator tells which tokens it replaced.

Both read the same embeddings. The sum of their losses is trained; no gradient passes through the replacements.
Source: Clark et al. 2020 (ELECTRA).
"""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from decero.data.collators import IGNORED
from decero.errors import UserError
from decero.execution.linear_cross_entropy import sample_ids, sampled_cross_entropy
from decero.execution.objective import (
    Batch,
    Objective,
    capture_projection_input,
    masked_lm,
    scored_logits,
    select_scored,
)
from decero.execution.packed_forward import logits_of
from decero.execution.transformers_internals import AnyKernel
from decero.execution.unwrap import unwrap

# The embeddings that both models share, in the base model of decero and of stock classes; never their projection.
SHARED = re.compile(r"embed_(tokens|positions|token_types|norm)\..*|embeddings\..*")


class GeneratorAndDiscriminator(AnyKernel, PreTrainedModel):
    """Hold two models with the same embeddings, to train them together.

    generator: fills holes. discriminator: one logit a token. Its embeddings of tokens, positions and segments, and
    their norm, become those of the generator, also in the output of a generator that ties them.

    Raises UserError for embeddings of other shapes.
    Source: Clark et al. 2020, section 3.2.
    """

    base_model_prefix = "discriminator"
    supports_gradient_checkpointing = True

    def __init__(self, generator: Any, discriminator: Any):
        super().__init__(discriminator.config)
        share_embeddings(generator, discriminator)
        self.generator, self.discriminator = generator, discriminator

    def forward(self, compute: Callable[..., Any], batch: Batch) -> Any:
        """Return compute(self, batch). A wrapper of `forward`, such as that of mixed precision, covers both models."""
        return compute(self, batch)

    def get_input_embeddings(self):
        return self.discriminator.get_input_embeddings()

    def get_output_embeddings(self):
        return self.generator.get_output_embeddings()


def parts_of(model: nn.Module) -> list[Any]:
    """Return the models that read text: generator and discriminator of a pair, else the model itself."""
    bare = unwrap(model)
    return [bare.generator, bare.discriminator] if isinstance(bare, GeneratorAndDiscriminator) else [bare]


def embeddings_of(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of the base model that a generator and its discriminator share, by name."""
    return {name: p for name, p in model.base_model.named_parameters() if SHARED.fullmatch(name)}


def share_embeddings(generator: Any, discriminator: Any) -> None:
    """Give the generator the embeddings of the discriminator. Raises UserError if their names or shapes differ."""
    own, wanted = embeddings_of(generator), embeddings_of(discriminator)
    for name in sorted(own.keys() | wanted.keys()):
        shapes = [list(found[name].shape) if name in found else "missing" for found in (own, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the generator cannot share {name}: {shapes[0]}, but {shapes[1]} in the discriminator; use two models "
                "of one family, with the same vocabulary, positions and embedding_size"
            )
    head = generator.get_output_embeddings()
    tied = head.weight is generator.get_input_embeddings().weight
    for name, parameter in wanted.items():
        place, _, leaf = name.rpartition(".")
        setattr(generator.base_model.get_submodule(place), leaf, parameter)
    if tied:
        head.weight = discriminator.get_input_embeddings().weight


def generator_config(config: Any, size: float) -> Any:
    """Return the configuration of a generator that is `size` times as wide as the discriminator of `config`.

    Width, heads and feed-forward shrink; depth, vocabulary and embeddings stay (paper, table 6).
    Initial weights grow by the root of 1 / size, so that a narrow generator learns as fast as a wide one.
    """
    made = deepcopy(config)
    heads = max(1, round(config.num_attention_heads * size))
    width = (
        2 * heads * max(1, round(config.hidden_size * size / (2 * heads)))
    )  # rotary positions turn pairs of features
    made.embedding_size = config.embedding_size or config.hidden_size
    if made.embedding_size == width and config.embedding_size is None:
        made.embedding_size = None
    made.hidden_size, made.num_attention_heads = width, heads
    made.intermediate_size = max(1, round(config.intermediate_size * size))
    made.initializer_range = round(config.initializer_range * (config.hidden_size / width) ** 0.5, 4)
    if hasattr(made, "head_dim"):
        made.head_dim, made.num_key_value_heads = width // heads, heads
    if hasattr(made, "lm_head_transform"):
        made.lm_head_transform = True
    made.tie_word_embeddings = True
    return made


def replacements(generator: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of the generator, and the token that it draws for each hole, (holes,).

    The last layer and the projection compute only holes.
    """
    scored_BL = batch["labels"] != IGNORED
    labels_N, draws_N = batch["labels"][scored_BL], batch["draws"][scored_BL]
    batch, scored_BL = select_scored(generator, batch, scored_BL)
    with capture_projection_input(generator, scored_BL) as captured:
        logits_of(generator, batch)
    projection = captured.projection.weight, captured.projection.bias
    return sampled_cross_entropy(captured.hidden, *projection, labels_N, draws_N)


def corrupted(batch: Batch, drawn_N: Tensor) -> tuple[Batch, Tensor]:
    """Put the drawn tokens into the holes; return the batch, and which tokens are replaced, bool (batch, length).

    A drawn token that is the original one counts as original.
    """
    hole_BL = batch["labels"] != IGNORED
    ids_BL = batch["input_ids"].masked_scatter(hole_BL, drawn_N)
    return batch | {"input_ids": ids_BL}, hole_BL & (ids_BL != batch["labels"])


def detection_loss(discriminator: nn.Module, batch: Batch, replaced_BL: Tensor) -> Tensor:
    """Sum over texts: mean binary cross-entropy of the text's tokens, times its number of holes.

    So the divisor of both losses is the number of holes, and it does not matter how texts are spread over batches.
    """
    logits_BL, real_BL = logits_of(discriminator, batch).float(), batch["attention_mask"].bool()
    texts_BL = batch.get("text_ids")
    if texts_BL is None:
        texts_BL = torch.arange(1, len(real_BL) + 1, device=real_BL.device)[:, None].expand_as(real_BL)
    text_N, most = texts_BL[real_BL], int(texts_BL.max()) + 1
    tokens_T = text_N.bincount(minlength=most)
    holes_T = texts_BL[batch["labels"] != IGNORED].bincount(minlength=most)
    weight_N = (holes_T / tokens_T.clamp(min=1))[text_N]
    target_N = replaced_BL[real_BL].float()
    nats_N = F.binary_cross_entropy_with_logits(logits_BL[real_BL], target_N, reduction="none")
    return (weight_N * nats_N).sum()


def _loss(pair: Any, batch: Batch, weight: float) -> Tensor:
    nats, drawn_N = replacements(pair.generator, batch)
    return nats + weight * detection_loss(pair.discriminator, *corrupted(batch, drawn_N))


def token_detection(collate: Callable[[list[dict]], Batch], weight: float) -> Objective:
    """Train a `GeneratorAndDiscriminator`: cross-entropy of the holes + weight x `detection_loss`; one item a hole.

    Source: Clark et al. 2020, section 2, with weight 50.
    """
    plain, loss = masked_lm(collate), partial(_loss, weight=weight)
    return Objective(collate, lambda model, batch: model(loss, batch), plain.count)


class DetectedRow(NamedTuple):
    """What generator and discriminator say of a text.

    logits: of its tokens, (tokens,). replaced: which are, bool (tokens,). nats, right: of its holes, summed.
    """

    logits: Tensor
    replaced: Tensor
    nats: float
    right: int
    holes: int


@torch.no_grad()
def detect(pair: Any, batch: Batch) -> Iterator[DetectedRow]:
    """Read a padded batch with both models; yield what they say of each text."""
    hole_BL, real_BL = batch["labels"] != IGNORED, batch["attention_mask"].bool()
    labels_N, sizes = batch["labels"][hole_BL], hole_BL.sum(dim=1).tolist()
    logits_NV = scored_logits(pair.generator, batch, hole_BL)
    nats_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    right_N = logits_NV.argmax(dim=-1) == labels_N
    drawn_N = sample_ids(logits_NV.softmax(dim=-1), batch["draws"][hole_BL])
    corrupt, replaced_BL = corrupted(batch, drawn_N)
    logits_BL = logits_of(pair.discriminator, corrupt).float()
    rows = zip(logits_BL, replaced_BL, real_BL, nats_N.split(sizes), right_N.split(sizes), sizes, strict=True)
    for logits_L, replaced_L, real_L, nats, right, holes in rows:
        yield DetectedRow(
            logits_L[real_L].cpu(), replaced_L[real_L].cpu(), float(nats.sum()), int(right.sum()), holes
        )  # fmt: skip
