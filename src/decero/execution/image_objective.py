"""Objectives of pictures: the class of a picture, and the class of each pixel."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from decero.data.augmentation import PASTED_WINDOW, Augmentation
from decero.data.box_noise import BoxNoise
from decero.data.boxes import from_corners
from decero.data.collators import IGNORED
from decero.data.copy_paste import Scene, cut_scene, paste
from decero.data.image_rows import Pixels
from decero.data.sizes import BatchSize
from decero.execution.objective import Batch, Objective


@dataclass(frozen=True)
class PictureCollator:
    """Make a batch of stored pictures, changed at random where `augment` says how.

    ignored: the id of mask pixels that are not scored. noise: how wrong copies of objects are drawn, for denoising.
    scenes: the stored pictures from which `augment.copy_paste` takes objects; it needs their masks.
    counts: whether rows have `labels`, a `mask` or `boxes`.
    """

    pixels: Pixels
    augment: Augmentation | None = None
    ignored: int = 255
    noise: BoxNoise | None = None
    scenes: Dataset | None = None

    def __call__(self, rows: list[dict]) -> Batch:
        """Return `pixel_values`, float32 (batch, channels, height, width), and `labels`.

        labels: classes (batch,); of objects a list of {class_labels (boxes,), boxes (boxes, 4)}, centre and size as
        shares of the picture; with noise also noised_classes (groups, boxes) and noised_boxes (groups, boxes, 4); of
        masks without objects (batch, height, width), -100 where none is scored.
        """
        scenes = [self.scene(row) for row in rows]
        pixels_BHWC = np.stack([scene.pixels for scene in scenes])
        batch: dict[str, Any] = {"pixel_values": torch.from_numpy(self.pixels.normalized(pixels_BHWC))}
        if "boxes" in rows[0]:
            batch["labels"] = [self._objects(scene, row) for scene, row in zip(scenes, rows, strict=True)]
        elif "mask" in rows[0]:
            masks = torch.from_numpy(np.stack([scene.mask for scene in scenes if scene.mask is not None])).long()
            batch["labels"] = masks.masked_fill(masks == self.ignored, IGNORED)
        elif "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    def scene(self, row: dict) -> Scene:
        """Return the picture of a row and what is on it, changed at random."""
        scene, augment, place = self._stored(row), self.augment, (row["epoch"], row["index"])
        if not augment:
            return scene
        scene = cut_scene(scene, augment.window(self.pixels.size, *place), self.ignored)
        drawn = augment.pastes(*place) if self.scenes is not None else None
        if self.scenes is not None and drawn is not None:
            other = self._stored(self.scenes[int(drawn.integers(len(self.scenes)))])
            window = augment.window(self.pixels.size, *place, PASTED_WINDOW)
            scene = paste(scene, cut_scene(other, window, self.ignored), drawn, self.ignored)
        mask = None if scene.mask is None else augment.erased(scene.mask, *place, self.ignored)
        return scene._replace(pixels=augment.erased(augment.recolored(scene.pixels, *place), *place), mask=mask)

    def _stored(self, row: dict) -> Scene:
        """Return the picture of a row as it is."""
        size = self.pixels.size
        pixels = np.frombuffer(row["pixels"], dtype=np.uint8).reshape(*size, self.pixels.channels)
        mask = np.frombuffer(row["mask"], dtype=np.uint8).reshape(size) if "mask" in row else None
        if "boxes" not in row:
            return Scene(pixels, mask)
        boxes = np.array(row["boxes"], dtype=np.float64).reshape(-1, 4)
        return Scene(pixels, mask, boxes, np.array(row["classes"], dtype=np.int64))

    def _objects(self, scene: Scene, row: dict) -> dict[str, Tensor]:
        """Return the labels of a picture with boxes."""
        assert scene.boxes is not None
        assert scene.classes is not None
        centred = from_corners(scene.boxes, "cxcywh")
        objects = {"class_labels": torch.from_numpy(scene.classes), "boxes": torch.from_numpy(centred).float()}
        if self.noise:
            noised, guesses = self.noise.draw(centred, scene.classes, row["epoch"], row["index"])
            objects["noised_boxes"] = torch.from_numpy(noised).float()
            objects["noised_classes"] = torch.from_numpy(guesses).long()
        return objects


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
