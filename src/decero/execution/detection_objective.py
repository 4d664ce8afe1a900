"""The objective of set prediction: match queries to objects, then sum the losses of classes and boxes."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import PreTrainedModel

from decero.data.collators import IGNORED
from decero.data.image_rows import Pixels
from decero.errors import UserError
from decero.execution.image_objective import PictureCollator, of_pictures
from decero.execution.objective import Batch, Objective
from decero.execution.transformers_internals import heads_on_layers

Targets = list[dict[str, Tensor]]  # of each picture: class_labels (boxes,), boxes (boxes, 4) as centre and size


class Weights(NamedTuple):
    """Weights of the terms of the loss; the first three also weigh the costs of a match, as in DETR."""

    classes: float = 1.0
    boxes: float = 5.0
    giou: float = 2.0
    no_object: float = 0.1


def corners(boxes_N4: Tensor) -> Tensor:
    """Return x1, y1, x2, y2 of boxes that are centre and size, (..., 4)."""
    centre, half = boxes_N4[..., :2], boxes_N4[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def generalized_iou(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """Return the generalized IoU of boxes x1, y1, x2, y2, in [-1, 1]; shapes broadcast: Rezatofighi et al. 2019."""
    low, high = torch.maximum(a_N4[..., :2], b_N4[..., :2]), torch.minimum(a_N4[..., 2:], b_N4[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = (a_N4[..., 2:] - a_N4[..., :2]).prod(dim=-1) + (b_N4[..., 2:] - b_N4[..., :2]).prod(dim=-1) - shared
    outer = torch.maximum(a_N4[..., 2:], b_N4[..., 2:]) - torch.minimum(a_N4[..., :2], b_N4[..., :2])
    hull = outer.clamp(min=0).prod(dim=-1)
    tiny = torch.finfo(a_N4.dtype).tiny
    return shared / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


@torch.no_grad()
def match(logits_BQC: Tensor, boxes_BQ4: Tensor, targets: Targets, weights: Weights) -> list[tuple[Tensor, Tensor]]:
    """Return for each picture the queries and the objects that belong together: Carion et al. 2020, section 3.1.

    The Hungarian algorithm finds the cheapest assignment. A cost that is NaN becomes the largest one.
    """
    found = []
    for logits_QC, boxes_Q4, target in zip(logits_BQC, boxes_BQ4, targets, strict=True):
        probability_QC = logits_QC.softmax(dim=-1)
        wanted = target["boxes"].to(boxes_Q4)
        cost_QT = (
            -weights.classes * probability_QC[:, target["class_labels"]]
            + weights.boxes * torch.cdist(boxes_Q4, wanted, p=1)
            - weights.giou * generalized_iou(corners(boxes_Q4)[:, None], corners(wanted)[None])
        )
        queries, objects = linear_sum_assignment(np.nan_to_num(cost_QT.cpu().numpy(), nan=1e8, posinf=1e8, neginf=-1e8))
        pair = (torch.as_tensor(each, dtype=torch.long, device=logits_QC.device) for each in (queries, objects))
        found.append(tuple(pair))
    return found  # type: ignore[return-value]


def check_no_object(logits_BQC: Tensor, model: Any, source: str) -> None:
    """Raise UserError for a detector whose logits have no last column for "no object"."""
    labels = model.config.num_labels
    if logits_BQC.shape[-1] != labels + 1:
        raise UserError(
            f'{source}: its head has {logits_BQC.shape[-1]} columns for {labels} classes, and none for "no object"; '
            "use a model that has one, as DETR and YOLOS"
        )


@torch.no_grad()
def blank_logits(model: PreTrainedModel, pixels: Pixels) -> Tensor:
    """Return the logits, (1, queries, columns), of a black picture. The model stays as it was."""
    trains = model.training
    picture = torch.zeros(1, pixels.channels, *pixels.size, device=model.device, dtype=model.dtype)
    logits = model.eval()(pixel_values=picture).logits
    model.train(trains)
    return logits


def layer_terms(logits_BQC: Tensor, boxes_BQ4: Tensor, targets: Targets, weights: Weights) -> dict[str, Tensor]:
    """Return the sums of one layer, without their weights: `classes`, `boxes` (L1), `giou` (1 - generalized IoU).

    The last class stands for no object; its cross-entropy is weighted by `weights.no_object`.
    """
    pairs = match(logits_BQC, boxes_BQ4, targets, weights)
    picture_N = torch.cat([torch.full_like(queries, number) for number, (queries, _) in enumerate(pairs)])
    query_N = torch.cat([queries for queries, _ in pairs])
    class_N = torch.cat([each["class_labels"][objects] for each, (_, objects) in zip(targets, pairs, strict=True)])
    wanted_N4 = torch.cat([each["boxes"][objects] for each, (_, objects) in zip(targets, pairs, strict=True)])
    nothing = logits_BQC.shape[-1] - 1
    class_BQ = torch.full(logits_BQC.shape[:2], nothing, dtype=torch.long, device=logits_BQC.device)
    class_BQ[picture_N, query_N] = class_N
    weight_C = logits_BQC.new_ones(nothing + 1)
    weight_C[-1] = weights.no_object
    said_N4 = boxes_BQ4[picture_N, query_N]
    return {
        "classes": F.cross_entropy(logits_BQC.transpose(1, 2), class_BQ, weight_C, reduction="sum"),
        "boxes": F.l1_loss(said_N4, wanted_N4.to(said_N4), reduction="sum"),
        "giou": (1 - generalized_iou(corners(said_N4), corners(wanted_N4.to(said_N4)))).sum(),
    }


def noised_queries(targets: Targets) -> dict[str, Tensor]:
    """Return the denoising queries of a batch, padded to the most objects of a picture: class -100, box 0.5."""
    most = max(len(each["class_labels"]) for each in targets)
    classes = [F.pad(each["noised_classes"], (0, most - len(each["class_labels"])), value=IGNORED) for each in targets]
    boxes = [F.pad(each["noised_boxes"], (0, 0, 0, most - len(each["class_labels"])), value=0.5) for each in targets]
    return {"denoising_classes": torch.stack(classes), "denoising_boxes": torch.stack(boxes)}


def denoising_terms(logits_BGTC: Tensor, boxes_BGT4: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Return the sums of one layer, each the mean over the groups: every copy belongs to its own object."""
    B, G, T, _ = logits_BGTC.shape
    class_BT = torch.stack([F.pad(e["class_labels"], (0, T - len(e["boxes"])), value=IGNORED) for e in targets])
    wanted_BT4 = torch.stack([F.pad(e["boxes"], (0, 0, 0, T - len(e["boxes"])), value=0.5) for e in targets])
    class_BGT, wanted_BGT4 = class_BT[:, None].expand(B, G, T), wanted_BT4[:, None].expand(B, G, T, 4)
    real_BGT = class_BGT != IGNORED
    said_N4, wanted_N4 = boxes_BGT4[real_BGT], wanted_BGT4[real_BGT].to(boxes_BGT4)
    return {
        "classes": F.cross_entropy(logits_BGTC[real_BGT], class_BGT[real_BGT], reduction="sum") / G,
        "boxes": F.l1_loss(said_N4, wanted_N4, reduction="sum") / G,
        "giou": (1 - generalized_iou(corners(said_N4), corners(wanted_N4))).sum() / G,
    }


def outputs_of_layers(model: nn.Module, batch: Batch, auxiliary: bool) -> list[tuple[Tensor, Tensor]]:
    """Return logits and boxes of the last layer and, for auxiliary losses, of the layers before it, in fp32."""
    found = heads_on_layers(model, {"pixel_values": batch["pixel_values"]}, auxiliary)
    return [(logits.float(), boxes.float()) for logits, boxes in found]


def outputs_with_noise(model: nn.Module, batch: Batch, auxiliary: bool) -> tuple[list[tuple[Tensor, Tensor]], ...]:
    """Return what `outputs_of_layers` does, and the same of the denoising queries, (batch, groups, objects, ...)."""
    output = model(pixel_values=batch["pixel_values"], **noised_queries(batch["labels"]))  # type: ignore[arg-type]
    found, noised = [output, *(output.auxiliary_outputs or [])], output.denoising_outputs
    last = None if auxiliary else 1
    return tuple(
        [(each["logits"].float(), each["pred_boxes"].float()) for each in layers[:last]] for layers in (found, noised)
    )


def detection(collate: PictureCollator, weights: Weights, auxiliary: bool = True) -> Objective:
    """Sum the losses of classes and boxes over the objects. The divisor of a step is its number of objects.

    All terms have this one divisor, as in Deformable DETR, so sums add up over micro-batches and processes. DETR
    divides the cross-entropy by the weights of all queries instead: Carion et al. 2020, section 3.1 and A.2. Where the
    collator draws noise, copies of the objects are denoised beside (Li et al. 2022, section 4).
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        targets: Any = batch["labels"]
        noised: list[tuple[Tensor, Tensor]] = []
        if collate.noise is None:
            found = outputs_of_layers(model, batch, auxiliary)
        else:
            found, noised = outputs_with_noise(model, batch, auxiliary)
        terms = [layer_terms(logits, boxes, targets, weights) for logits, boxes in found]
        terms += [denoising_terms(logits, boxes, targets) for logits, boxes in noised]
        total = batch["pixel_values"].new_zeros(())
        for each in terms:
            total = total + weights.classes * each["classes"] + weights.boxes * each["boxes"]
            total = total + weights.giou * each["giou"]
        return total

    return of_pictures(collate, loss, lambda batch: sum(len(each["class_labels"]) for each in batch["labels"]))  # type: ignore[index]
