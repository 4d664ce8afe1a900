"""Answers of trained models about pictures: the class of a picture, the class of each pixel, boxes of objects."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedModel

from decero.data.boxes import Boxes
from decero.data.image_rows import Pixels
from decero.data.images import open_image, to_pixels
from decero.errors import UserError
from decero.execution.detection_objective import check_no_object, corners
from decero.execution.image_models import processor_settings, saved_pixels
from decero.execution.image_objective import pixel_logits
from decero.execution.model_folder import Checkpoint, open_checkpoint, read_config
from decero.execution.pretrained import load_pretrained, one_line, read_model_config
from decero.inference.loading import picture_head
from decero.inference.text_classification import names_of, probabilities

Picture = Image.Image | str | Path | bytes


@dataclass
class LoadedPictures:
    """Hold a model in evaluation mode, the form of its pictures, and the name that the user gave."""

    name: str
    model: PreTrainedModel
    pixels: Pixels

    def batches(self, pictures: Iterable[Picture], size: int) -> Iterator[tuple[list[Image.Image], dict[str, Tensor]]]:
        """Yield pictures and their `pixel_values`, (batch, channels, height, width), `size` at a time.

        Raises UserError for a picture that cannot be read, after those before it.
        """
        if isinstance(pictures, Image.Image | str | Path | bytes) or not isinstance(pictures, Iterable):
            raise UserError(f"pictures: give a list of pictures, not a {type(pictures).__name__}")
        images: list[Image.Image] = []
        arrays: list[np.ndarray] = []
        for number, picture in enumerate(pictures, start=1):
            try:
                image, array = self._read(picture, number)
            except UserError:
                if images:
                    yield images, self._inputs(arrays)
                raise
            images.append(image)
            arrays.append(array)
            if len(images) == size:
                yield images, self._inputs(arrays)
                images, arrays = [], []
        if images:
            yield images, self._inputs(arrays)

    def _read(self, picture: Picture, number: int) -> tuple[Image.Image, np.ndarray]:
        where = str(picture) if isinstance(picture, str | Path) else f"picture {number}"
        image = ImageOps.exif_transpose(picture) if isinstance(picture, Image.Image) else open_image(picture, where)
        pixels = self.pixels
        return image, to_pixels(image, pixels.size, pixels.channels, where, pixels.resample)

    def _inputs(self, arrays: list[np.ndarray]) -> dict[str, Tensor]:
        values = torch.from_numpy(self.pixels.normalized(np.stack(arrays)))
        return {"pixel_values": values.to(self.model.device, self.model.dtype)}


def reads_pictures(name: str | Path, **loading: Any) -> str | None:
    """Return the command for a checkpoint that reads pictures; None for another one, or where there is none."""
    with one_line(str(name)):
        checkpoint = open_checkpoint(str(name), weights=False, **loading)
    found = picture_head(read_config(checkpoint.folder).get("architectures") or [])
    return found[1] if found else None


def load_pictures(name: str | Path | LoadedPictures, command: str, **loading: Any) -> LoadedPictures:
    """Load a model for `classify`, `segment`, `detect` or `explain` onto the GPU if there is one.

    loading: revision, trust_remote_code, code_revision. Raises UserError as `inference.load` does.
    """
    if isinstance(name, LoadedPictures):
        return name
    name = str(name)
    with one_line(name, "give --trust-remote-code --revision COMMIT"):
        checkpoint: Checkpoint = open_checkpoint(name, **loading)
        config: Any = read_model_config(checkpoint)
        found = picture_head(config.architectures or [])
        if found is None or found[1] != command:
            what = f"{found[2]}; use decero {found[1]}" if found else "reads no pictures"
            raise UserError(f"{name}: this {config.model_type} model {what}")
        model: Any = load_pretrained(found[0], checkpoint, new_head=False, dtype=torch.float32)
    pixels = saved_pixels(name, processor_settings(checkpoint), config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedPictures(name, model.to(device).eval(), pixels)


@torch.no_grad()
def classify_pictures(
    model: str | Path | LoadedPictures, pictures: Iterable[Picture], batch_size: int = 32
) -> Iterator[dict[str, float]]:
    """Yield for each picture the probability of every label, likeliest first.

    Raises UserError as `load_pictures` does, and for a picture that cannot be read.
    """
    loaded = load_pictures(model, "classify")
    config: Any = loaded.model.config
    for _, inputs in loaded.batches(pictures, batch_size):
        found_BC = probabilities(config, _finite(loaded, loaded.model(**inputs).logits.float())).cpu().numpy()
        names = names_of(config, found_BC.shape[1])
        for row_C in found_BC:
            yield {names[i]: float(row_C[i]) for i in np.argsort(-row_C, kind="stable").tolist()}


class Segmented(NamedTuple):
    """The answer about the pixels of a picture. mask: class ids, uint8 (height, width) of the picture as it is shown.

    names: of the ids. shares: name -> share of the pixels, the largest first, without zeros.
    """

    mask: np.ndarray
    names: list[str]
    shares: dict[str, float]


@torch.no_grad()
def segment(
    model: str | Path | LoadedPictures, pictures: Iterable[Picture], batch_size: int = 8
) -> Iterator[Segmented]:
    """Yield the class of each pixel. Raises UserError as `classify_pictures` does."""
    loaded = load_pictures(model, "segment")
    for images, inputs in loaded.batches(pictures, batch_size):
        logits_BCHW = _finite(loaded, pixel_logits(loaded.model, inputs))
        names = names_of(loaded.model.config, logits_BCHW.shape[1])
        if len(names) > 256:  # a mask is a picture of bytes
            raise UserError(f"{loaded.name}: it has {len(names)} classes; segment reads models of at most 256")
        for image, ids in zip(images, logits_BCHW.argmax(dim=1).to(torch.uint8).cpu().numpy(), strict=True):
            mask = np.asarray(Image.fromarray(ids).resize(image.size, Image.Resampling.NEAREST))
            counts = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
            order = np.argsort(-counts, kind="stable").tolist()
            yield Segmented(mask, names, {names[i]: float(counts[i]) for i in order if counts[i]})


class Boxed(NamedTuple):
    """An object that was found. box: x1, y1, x2, y2 in pixels of the picture as it is shown."""

    box: tuple[float, float, float, float]
    label: str
    id: int
    score: float


def read_boxes(logits_BQC: Tensor, boxes_BQ4: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
    """Return for each picture the likeliest class of every query, its probability and its box in pixels, surest first.

    logits_BQC: the last class stands for no object. boxes_BQ4: centre and size as shares of the picture. sizes:
    (width, height) of each.
    """
    score_BQ, class_BQ = logits_BQC.float().softmax(dim=-1)[..., :-1].max(dim=-1)
    found = []
    shares = corners(boxes_BQ4.float()).clamp(0, 1)
    for score_Q, class_Q, box_Q4, (width, height) in zip(score_BQ, class_BQ, shares, sizes, strict=True):
        order = score_Q.argsort(descending=True, stable=True)
        boxes = box_Q4[order].cpu().numpy().astype(np.float64) * [width, height, width, height]
        found.append(Boxes(boxes, class_Q[order].cpu().numpy(), score_Q[order].cpu().numpy().astype(np.float64)))
    return found


@torch.no_grad()
def detect(
    model: str | Path | LoadedPictures, pictures: Iterable[Picture], threshold: float = 0.5, batch_size: int = 8
) -> Iterator[list[Boxed]]:
    """Yield the objects of each picture whose probability is above the threshold, surest first.

    Raises UserError as `classify_pictures` does, and for a model whose head has no column for "no object".
    """
    loaded = load_pictures(model, "detect")
    for images, inputs in loaded.batches(pictures, batch_size):
        outputs: Any = loaded.model(**inputs)
        check_no_object(outputs.logits, loaded.model, loaded.name)
        names = names_of(loaded.model.config, _finite(loaded, outputs.logits).shape[-1] - 1)
        for found in read_boxes(outputs.logits, outputs.pred_boxes, [image.size for image in images]):
            assert found.scores is not None
            rows = zip(found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True)
            yield [Boxed(tuple(box), names[kind], kind, score) for box, kind, score in rows if score > threshold]


def _finite(loaded: LoadedPictures, logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise UserError(f"{loaded.name}: the model computes NaN or infinity, which is no answer; use another one")
    return logits
