"""Make the pictures of a workload, and their batches: as the example of transformers does, and as a run of ours does.

Dimensions: B batch, C channels, Y and X height and width.
"""

import io
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel

from decero.config.benchmark import Workload
from decero.data.augmentation import Augmentation
from decero.data.image_rows import Columns, Pixels, decode_rows
from decero.execution.image_objective import PictureCollator, picture_classes
from decero.planning.cost import picture_flops

Batch = dict[str, Tensor]
CLASSES = 10
SHAPES, GRAIN = 7, 8  # random shapes: fields a side; noise of a photograph: levels of 256
LEAST_AREA = 0.08  # of a random crop: the default of torchvision's RandomResizedCrop, which the example uses


def make_pictures(work: Workload, config: PreTrainedConfig, seed: int) -> Dataset:
    """Make random pictures of the model's size as PNG files in memory: `image`, `labels` and `index` of each."""
    rng = np.random.default_rng(seed)
    rows = [
        {"image": {"bytes": _png(rng, pixels_of(config)), "path": None}, "labels": index % CLASSES, "index": index}
        for index in range(work.batches * work.batch_size)
    ]
    features = {"image": datasets.Image(), "labels": datasets.Value("int64"), "index": datasets.Value("int64")}
    return Dataset.from_list(rows, features=datasets.Features(features))


def _png(rng: np.random.Generator, form: Pixels) -> bytes:
    """Return a file of smooth shapes and a little noise, which compresses about as a photograph does."""
    height, width = form.size
    shapes = Image.fromarray(rng.integers(0, 256, (SHAPES, SHAPES, 3), np.uint8)).resize((width, height))
    grain = rng.integers(0, GRAIN, (height, width, 3), np.uint8)
    noisy = (np.asarray(shapes).astype(np.int64) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).convert(_mode(form)).save(file, "png")
    return file.getvalue()


def _mode(form: Pixels) -> str:
    return "L" if form.channels == 1 else "RGB"


def pixels_of(config: Any) -> Pixels:
    """Return the form in which a model gets pictures."""
    return Pixels(tuple(config.picture_size), config.num_channels)


def crops_of(seed: int) -> Augmentation:
    """Return the augmentation of all arms, that of the example: random resized crops, and every other one flipped."""
    return Augmentation(horizontal_flip=True, min_scale=LEAST_AREA, seed=seed)


def stored_pictures(pictures: Dataset, config: PreTrainedConfig) -> Dataset:
    """Decode the pictures once, to a memory-mapped file of uint8 pixels, as a run of ours does before it trains."""
    return decode_rows(pictures, Columns("image"), pixels_of(config), where="the benchmark")


def picture_collator(config: PreTrainedConfig, seed: int) -> PictureCollator:
    """Return the collator of a run of ours, for `stored_pictures`."""
    return PictureCollator(pixels_of(config), crops_of(seed))


def example_batches(work: Workload, pictures: Dataset, config: PreTrainedConfig, seed: int) -> list[Batch]:
    """Return the batches of a unit as `run_image_classification_no_trainer` makes them, with its defaults.

    Each picture is decoded, cropped, flipped and normalized when it is read, in the process that trains. The operations
    are those of torchvision's transforms, which only call Pillow and torch here. The window is drawn as ours is, in
    about the same time, so that all arms train on the same pixels.
    """
    rows = pictures.with_transform(_transforms(pixels_of(config), crops_of(seed)))
    return list(DataLoader(rows, batch_size=work.batch_size, collate_fn=_collate))  # type: ignore[arg-type]


def _transforms(form: Pixels, crops: Augmentation) -> Callable[[dict[str, list]], dict[str, list]]:
    height, width = form.size
    mean_C11, std_C11 = (torch.tensor(each[: form.channels]).view(-1, 1, 1) for each in (form.mean, form.std))

    def transform(image: Image.Image, index: int) -> Tensor:
        image = image.convert(_mode(form))
        top, left, cut_height, cut_width, flipped = crops.window((image.height, image.width), 0, index)
        image = image.crop((left, top, left + cut_width, top + cut_height))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels_YXC = torch.from_numpy(np.array(image).reshape(height, width, form.channels))
        return pixels_YXC.permute(2, 0, 1).contiguous().float().div(255).sub_(mean_C11).div_(std_C11)

    def transform_rows(rows: dict[str, list]) -> dict[str, list]:
        pixels = [transform(image, index) for image, index in zip(rows["image"], rows["index"], strict=True)]
        return {"pixel_values": pixels, "labels": rows["labels"]}

    return transform_rows


def _collate(rows: list[dict[str, Any]]) -> Batch:
    labels = torch.tensor([row["labels"] for row in rows])
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}


def describe_pictures(pictures: Dataset, ours: PreTrainedModel, seed: int) -> dict[str, Any]:
    """Count pictures and FLOPs of a unit. torch cannot count what the fused attention of a CPU computes."""
    ours.set_attn_implementation("eager")
    form, objective = pixels_of(ours.config), picture_classes(picture_collator(ours.config, seed))
    black = {"pixels": [bytes(form.size[0] * form.size[1] * form.channels)], "labels": [0]}
    each = picture_flops(ours, objective, Dataset.from_dict(black))
    return {"pictures": len(pictures), "flops": each * len(pictures)}
