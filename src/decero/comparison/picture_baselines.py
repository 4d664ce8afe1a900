"""Simple baselines for pictures: what a Transformer must beat to be worth its time."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from torch import nn

from decero.data.boxes import Boxes
from decero.data.corpus import source_rows
from decero.data.image_rows import Pixels
from decero.data.order import RowIndex, Rows, epoch_order
from decero.evaluation.average_precision import average_precision
from decero.evaluation.mean_iou import pixel_counts, pixel_metrics
from decero.evaluation.metrics import compute_metrics
from decero.execution.image_objective import PictureCollator
from decero.tasks.image_classification import KIND
from decero.tasks.object_detection import true_boxes, write_boxes
from decero.tasks.semantic_segmentation import write_counts

BATCH = 128


def baseline_pixels(task: Any) -> Pixels:
    """Return RGB pictures of the size in the settings, or of the first picture; a baseline has no model that says."""
    size = task.config.data.image_size
    if size is None:
        return Pixels(task.first_picture())
    return Pixels((size, size) if isinstance(size, int) else (size[0], size[1]))


def arrays(rows: Dataset, pixels: Pixels) -> np.ndarray:
    """Return normalized pictures, float32 (rows, values)."""
    stored = np.frombuffer(b"".join(rows["pixels"]), dtype=np.uint8).reshape(len(rows), *pixels.size, pixels.channels)
    return pixels.normalized(stored).reshape(len(rows), -1)


def logistic(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Fit a logistic regression to pixels. Its settings are fixed, so nothing is tuned on test."""
    pixels = baseline_pixels(task)
    read = {each: task.decoded(task.corpus.splits[each][""], each, pixels) for each in ("train", split)}
    model = LogisticRegression(C=0.05, max_iter=200)
    model.fit(arrays(read["train"], pixels), np.asarray(read["train"]["labels"]))
    predictions = model.predict(arrays(read[split], pixels))
    return _scored(task, folder, split, predictions) | {"num_parameters": int(model.coef_.size + model.intercept_.size)}


class TwoLayers(nn.Module):
    """Two convolutions of 5 x 5 with 32 and 64 channels, each pooled by 2, and two linear layers: LeCun et al. 1998."""

    def __init__(self, pixels: Pixels, labels: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(pixels.channels, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        height, width = (max(1, side // 4) for side in pixels.size)
        self.dense, self.classifier = nn.Linear(64 * height * width, 256), nn.Linear(256, labels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = F.max_pool2d(self.first(pixel_values).relu(), 2, ceil_mode=min(pixel_values.shape[-2:]) < 4)
        hidden = F.max_pool2d(self.second(hidden).relu(), 2, ceil_mode=min(pixel_values.shape[-2:]) < 4)
        return self.classifier(self.dense(hidden.flatten(1)).relu())


def cnn(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Train a two-layer CNN with Adam for as many epochs as the models, on pictures changed as theirs."""
    pixels, training, seed = baseline_pixels(task), task.config.training, task.config.seed
    read = {each: task.decoded(task.corpus.splits[each][""], each, pixels) for each in ("train", split)}
    size = len(read["train"])
    pictures = (training.max_train_steps or 0) * (training.global_batch_size or 0)
    epochs = training.num_train_epochs or -(-pictures // size)
    collate, plain = PictureCollator(pixels, task.augmentation), PictureCollator(pixels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TwoLayers(pixels, len(task.corpus.label_names))
    optimizer, rows = torch.optim.Adam(model.parameters(), lr=1e-3), Rows(read["train"])
    for epoch in range(epochs):
        order = epoch_order(seed, epoch, size)
        for start in range(0, size, BATCH):
            batch = collate(rows.__getitems__([RowIndex(epoch, int(row)) for row in order[start : start + BATCH]]))
            optimizer.zero_grad()
            F.cross_entropy(model(batch["pixel_values"]), batch["labels"]).backward()
            optimizer.step()
    predictions, tested = [], Rows(read[split])
    with torch.no_grad():
        for start in range(0, len(tested), BATCH):
            places = [RowIndex(0, row) for row in range(start, min(start + BATCH, len(tested)))]
            predictions += model(plain(tested.__getitems__(places))["pixel_values"]).argmax(dim=1).tolist()
    count = sum(p.numel() for p in model.parameters())
    return _scored(task, folder, split, np.array(predictions)) | {"num_parameters": count}


def majority(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Say of every pixel the class that most pixels of train have."""
    pixels, classes, ignored = baseline_pixels(task), len(task.class_names), task.config.data.ignored_id
    read = {each: task.decoded(task.corpus.splits[each][""], each, pixels) for each in ("train", split)}
    counts = np.zeros(256, dtype=np.int64)
    for mask in read["train"]["mask"]:
        counts += np.bincount(np.frombuffer(mask, dtype=np.uint8), minlength=256)
    counts[ignored] = 0
    most = int(counts[:classes].argmax())
    masks = [np.frombuffer(each, dtype=np.uint8).reshape(pixels.size) for each in read[split]["mask"]]
    said = [np.full_like(mask, most) for mask in masks]
    counted = np.stack([pixel_counts(a, b, classes, ignored) for a, b in zip(said, masks, strict=True)])
    if folder:
        write_counts(folder, task.corpus.splits[split][""], counted, said)
    facts = {"label_names": list(task.class_names), "train_examples": len(read["train"]), "num_parameters": 1}
    return {"metric": pixel_metrics(counted.sum(axis=0))} | facts


def mean_box(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Say of every picture the mean box of each class of train, as sure as its pictures are many."""
    pixels, classes = baseline_pixels(task), len(task.corpus.label_names)
    read = {each: task.decoded(task.corpus.splits[each][""], each, pixels) for each in ("train", split)}
    shares = np.array([value for row in read["train"]["boxes"] for value in row]).reshape(-1, 4)
    kinds = np.array([value for row in read["train"]["classes"] for value in row])
    present = [kind for kind in range(classes) if (kinds == kind).any()]
    means = np.stack([shares[kinds == kind].mean(axis=0) for kind in present])
    rates = [np.mean([kind in row for row in read["train"]["classes"]]) for kind in present]
    sides = zip(read[split]["width"], read[split]["height"], strict=True)
    said = [Boxes(means * [w, h, w, h], np.array(present), np.array(rates, dtype=np.float64)) for w, h in sides]
    true = true_boxes(read[split])
    if folder:
        write_boxes(folder, task.corpus.splits[split][""], said, true)
    facts = {"label_names": list(task.corpus.label_names), "train_examples": len(read["train"])}
    return {"metric": average_precision(said, true, classes), "num_parameters": 4 * len(present)} | facts


def _scored(task: Any, folder: Path | None, split: str, predictions: np.ndarray) -> dict[str, Any]:
    """Write predictions.parquet, and return the record."""
    rows = task.corpus.splits[split][""]
    labels = np.asarray(rows["labels"])
    if folder:
        table = pd.DataFrame({"row": list(source_rows(rows)), "label": labels, "prediction": predictions})
        table.rename_axis("index").reset_index().to_parquet(folder / "predictions.parquet", index=False)
    return {
        "metric": compute_metrics(KIND, predictions, labels),
        "train_examples": len(task.corpus.splits["train"][""]),
        "label_names": list(task.corpus.label_names),
    }
