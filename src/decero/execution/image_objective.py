"""Objectives of pictures: the class of a picture, and the class of each pixel."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from decero.data.augmentation import Augmentation, cut_boxes, cut_pixels
from decero.data.box_noise import BoxNoise
from decero.data.boxes import from_corners
from decero.data.collators import IGNORED
from decero.data.image_rows import Pixels
from decero.data.sizes import BatchSize
from decero.execution.objective import Batch, Objective


@dataclass(frozen=True)
class PictureCollator:
    """Make a batch of stored pictures, changed at random where `augment` says how.

    ignored: the id of mask pixels that are not scored. noise: how wrong copies of objects are drawn, for denoising.
    counts: whether rows have `labels`, a `mask` or `boxes`.
    """

    pixels: Pixels
    augment: Augmentation | None = None
    ignored: int = 255
    noise: BoxNoise | None = None

    def __call__(self, rows: list[dict]) -> Batch:
        """Return `pixel_values`, float32 (batch, channels, height, width), and `labels`.

        labels: classes (batch,); of masks (batch, height, width), -100 where none is scored; of objects a list of
        {class_labels (boxes,), boxes (boxes, 4)}, centre and size as shares of the picture; with noise also
        noised_classes (groups, boxes) and noised_boxes (groups, boxes, 4).
        """
        size, augment = self.pixels.size, self.augment
        pictures: list[np.ndarray] = []
        labels: list[Any] = []
        for row in rows:
            picture = np.frombuffer(row["pixels"], dtype=np.uint8).reshape(*size, self.pixels.channels)
            place = row["epoch"], row["index"]
            window = augment.window(size, *place) if augment else None
            if augment and window:
                picture = augment.erased(augment.recolored(cut_pixels(picture, window), *place), *place)
            pictures.append(picture)
            if "mask" in row:
                mask = np.frombuffer(row["mask"], dtype=np.uint8).reshape(size)
                if augment and window:
                    mask = cut_pixels(mask, window, self.ignored, smooth=False)
                    mask = augment.erased(mask, *place, self.ignored)
                labels.append(mask)
            elif "boxes" in row:
                boxes, classes = np.array(row["boxes"], dtype=np.float64).reshape(-1, 4), np.array(row["classes"])
                if window:
                    boxes, stay = cut_boxes(boxes, size, window)
                    classes = classes[stay]
                centred = from_corners(boxes, "cxcywh")
                objects = {"class_labels": torch.as_tensor(classes).long(), "boxes": torch.from_numpy(centred).float()}
                if self.noise:
                    noised, guesses = self.noise.draw(centred, classes, row["epoch"], row["index"])
                    objects["noised_boxes"] = torch.from_numpy(noised).float()
                    objects["noised_classes"] = torch.from_numpy(guesses).long()
                labels.append(objects)
            else:
                labels.append(row.get("labels"))
        batch: dict[str, Any] = {"pixel_values": torch.from_numpy(self.pixels.normalized(np.stack(pictures)))}
        if "mask" in rows[0]:
            masks = torch.from_numpy(np.stack(labels)).long()
            batch["labels"] = masks.masked_fill(masks == self.ignored, IGNORED)
        elif "boxes" in rows[0]:
            batch["labels"] = labels
        elif "labels" in rows[0]:
            batch["labels"] = torch.tensor(labels)
        return batch


def one_each(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of rows that are one picture each."""
    return np.ones(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)


def picture_batch_size(batch: Batch, scored: float, examples: int) -> BatchSize:
    """Return the size of a batch of pictures, which count as one each."""
    return BatchSize(examples, examples, scored, examples, examples)


of_pictures = partial(
    Objective, batch_size=picture_batch_size, row_lengths=one_each, packable=False, unit="pictures"
)  # what all objectives of pictures share


def picture_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of a head that reads pictures."""
    return model(pixel_values=batch["pixel_values"]).logits


def picture_classes(collate: PictureCollator, label_smoothing: float = 0.0) -> Objective:
    """Sum the cross-entropy of the class of each picture."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits_BC = picture_logits(model, batch).float()
        return F.cross_entropy(logits_BC, batch["labels"], reduction="sum", label_smoothing=label_smoothing)

    return of_pictures(collate, loss, lambda batch: len(batch["labels"]), per_text=("labels",))


def pixel_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of every pixel, (batch, classes, height, width) in fp32, of a head that has fewer places."""
    logits_BChw = picture_logits(model, batch).float()
    size = batch["pixel_values"].shape[-2:]
    if logits_BChw.shape[-2:] == size:
        return logits_BChw
    return F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)


def pixel_classes(collate: PictureCollator, label_smoothing: float = 0.0) -> Objective:
    """Sum the cross-entropy of the class of each scored pixel."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits_BCHW = pixel_logits(model, batch)
        return F.cross_entropy(
            logits_BCHW, batch["labels"], reduction="sum", ignore_index=IGNORED, label_smoothing=label_smoothing
        )

    return of_pictures(collate, loss, lambda batch: int((batch["labels"] != IGNORED).sum()), logits=pixel_logits)
