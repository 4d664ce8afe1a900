"""Semantic segmentation: the class of each pixel, with any model of ours or of transformers with such a head."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from decero.config.finetune_images import FinetuneSemanticSegmentation
from decero.data.corpus import source_rows, train_examples
from decero.data.image_rows import Columns, check_pictures, undecoded
from decero.data.images import open_image
from decero.data.labels import in_known_order
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics
from decero.evaluation.mean_iou import PIXEL_METRICS, by_class, pixel_counts, pixel_metrics, pixel_statistics
from decero.execution.build import checkpoint_of
from decero.execution.image_models import processor_settings
from decero.execution.image_objective import PictureCollator, pixel_classes, pixel_logits
from decero.execution.objective import Objective
from decero.tasks.base import Corpus, Scores, TaskData
from decero.tasks.label_predictions import check_same_labels, in_columns_of
from decero.tasks.picture_task import PictureTask
from decero.training.evaluation import mean_loss, predict_rows
from decero.training.records import read_record
from decero.training.runs import Run

Answer = tuple[np.ndarray, np.ndarray]  # counts (3, classes), and the mask that was said (height, width)


class SemanticSegmentation(PictureTask):
    recipe, Config = "finetune_semantic_segmentation", FinetuneSemanticSegmentation
    command = "segment"
    auto_class = AutoModelForSemanticSegmentation
    head = "ForSemanticSegmentation"
    baselines = ("majority",)

    def usage(self, folder: Path) -> list[str]:
        return [f"decero segment {folder} PICTURE --out FOLDER"]

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the ids of masks, as the settings or the masks of train have them."""
        _ = self.corpus
        return self._names

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The pictures with their masks, train cut to the label budget. `label_names` are the classes of pixels."""
        notes: list[str] = []
        data = self.config.data
        corpus = self.load_pictures(notes)
        for split, rows in corpus.items():
            check_pictures(rows, data.mask_column, split, "data.mask_column")
        if data.class_names:
            names = list(data.class_names)
        elif self.config.eval_only:
            names = self.known
        else:
            first = "train" if "train" in corpus else next(iter(corpus))
            names = [str(number) for number in range(self._largest_id(corpus[first], first) + 1)]
        if self.config.eval_only:
            check_same_labels(str(self.config.model.name_or_path), self.known, names)
            if not self.keeps_head(names):
                ids = ", ".join(f"{number} {name}" for number, name in enumerate(self.known[:20]))
                raise UserError(
                    f"data.class_names: the ids of masks must mean what they mean to {self.config.model.name_or_path}: "
                    f"{ids}; write masks with these ids"
                )
            names = self.known
        elif self.known:
            kept = self.keeps_head(names)
            names = self.known if kept else names
            mend = "" if kept or data.class_names else "; name the ids of your masks with data.class_names to keep it"
            notes.append(
                f"{self.config.model.name_or_path}: the head is {'kept' if kept else 'new'}: {len(names)} classes{mend}"
            )
        if self.known and self.keeps_head(names) and self._reduces_labels():
            notes.append(
                f"{self.config.model.name_or_path}: its processor subtracts 1 from the ids of masks (do_reduce_labels) "
                f"and skips 0. decero takes ids as they are, so 0 must be {self.known[0]} in your masks"
            )
        self.cut_train(corpus, "masks", notes)
        self._names = list(names)
        splits = {split: {"": rows} for split, rows in corpus.items()}
        return Corpus(splits, (data.image_column,), tuple(names), tuple(notes))

    def _reduces_labels(self) -> bool:
        """Whether masks of the checkpoint's own data have ids that are one higher than its classes, as in ADE20K."""
        saved = processor_settings(checkpoint_of(self.config.model, weights=False))
        return bool(saved.get("do_reduce_labels", saved.get("reduce_labels")))

    def keeps_head(self, names: Sequence[str]) -> bool:
        """Whether the head knows these classes under these ids: masks hold numbers, so their order counts."""
        known = in_known_order(names, self.known)
        return known is not None and known[: len(names)] == list(names)

    def _largest_id(self, rows: Dataset, split: str) -> int:
        """The largest id of the masks, without the one that is not scored."""
        data, most, skips = self.config.data, 0, False
        masks = undecoded(rows.select_columns([data.mask_column]), data.mask_column)
        for number, row in zip(source_rows(rows), masks, strict=True):
            where = f"{self.place_of(split)}, row {number}, mask"
            ids = np.asarray(open_image(row[data.mask_column], where, self.folder_of(split)))
            scored = ids[ids != data.ignored_id]
            largest = int(scored.max()) if scored.size else 0
            if largest > 255:
                raise UserError(f"{where}: it has the id {largest}; ids are 0 to 255")
            most = max(most, largest)
            skips |= scored.size < ids.size
        if most == 0 and skips:
            raise self._one_id(split, 0)
        if most == 0:
            raise UserError(
                f"{split}: column {data.mask_column!r} has only the id 0; give objects another one, up to 254"
            )
        return most

    def _one_id(self, split: str, number: int) -> UserError:
        ignored = self.config.data.ignored_id
        return UserError(
            f"{split}: masks hold only id {number}, besides {ignored}, which is not scored (data.ignored_id); write "
            f"the object as {min({0, 1, 2} - {number, ignored})}, or set data.ignored_id to another number"
        )

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        """Read pictures and masks.

        Raises UserError where train has pixels that are not scored, and all others have one id.
        """
        rows = super().tokenize(parts, split)
        counts_C = np.zeros(256, dtype=np.int64)
        for mask in rows[""]["mask"]:
            counts_C += np.bincount(np.frombuffer(mask, dtype=np.uint8), minlength=256)
        skipped, counts_C[self.config.data.ignored_id] = counts_C[self.config.data.ignored_id], 0
        if split != "train":
            if not counts_C.any():
                self.add_note(f"{split}: no pixel is scored (all have data.ignored_id), so mean IoU is 0 for any model")
            return rows
        if skipped and len(found := np.flatnonzero(counts_C)) == 1:
            raise self._one_id(split, int(found[0]))
        lacking = [name for number, name in enumerate(self.class_names) if not counts_C[number]]
        if lacking:
            self.add_note(f"train: no pixel is of the class {', '.join(lacking[:20])}: the model cannot learn it")
        return rows

    def columns(self, split: str) -> Columns:
        data = self.config.data
        return replace(
            super().columns(split), mask=data.mask_column, known=len(self.class_names), ignored=data.ignored_id
        )

    def collator(self, trains: bool) -> PictureCollator:
        return replace(super().collator(trains), ignored=self.config.data.ignored_id)

    def objective(self, model: nn.Module) -> Objective:
        return pixel_classes(self.collator(trains=True), self.config.objective.label_smoothing)

    def reported_objective(self, model: nn.Module) -> Objective:
        return pixel_classes(self.collator(trains=False))

    # --- evaluation

    def _predict(self, run: Run, model: nn.Module, rows: Dataset) -> list[Answer]:
        """The counts of pixels of each picture, and the masks that the model gives."""
        classes = len(self.class_names)

        def read_out(bare: nn.Module, batch: Any, indices: list[int]) -> list[Answer]:
            said = pixel_logits(bare, batch).argmax(dim=1).cpu().numpy()
            true = batch["labels"].cpu().numpy()
            pairs = zip(said, true, strict=True)
            return [(pixel_counts(a, b, classes, ignored=-100), a.astype(np.uint8)) for a, b in pairs]

        size = run.training.per_device_eval_batch_size
        return predict_rows(run.accelerator, model, rows, self.reported_objective(model), size, read_out)

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        size = run.training.per_device_eval_batch_size
        loss = mean_loss(run.accelerator, model, rows, self.reported_objective(model), size)["loss"]
        counts = np.sum([each for each, _ in self._predict(run, model, rows)], axis=0)
        return pixel_metrics(counts) | {"loss": loss}

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        answers = self._predict(run, model, data.held_out[split][""])
        counts = np.stack([each for each, _ in answers])
        if run.is_main:
            write_counts(run.output, self.corpus.splits[split][""], counts, [mask for _, mask in answers])
        facts: dict[str, Any] = {"label_names": self.class_names} | train_examples(self.corpus.splits)
        facts |= {"by_class": by_class(counts.sum(axis=0), self.class_names), "split": split}
        return Scores(pixel_metrics(counts.sum(axis=0)), facts)

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._predict(run, model, rows)

    # --- comparison

    @property
    def metrics(self) -> tuple[str, ...]:
        return PIXEL_METRICS

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "predictions.parquet")
        counts = np.stack([np.array(table[name].tolist()) for name in ("right", "said", "true")], axis=1)
        theirs = read_record(folder).get("label_names", self.class_names)
        return pixel_statistics(metric, in_columns_of(self.class_names, counts, theirs))


def write_counts(output: Path, rows: Dataset, counts_N3C: np.ndarray, masks: list[np.ndarray]) -> None:
    """predictions.parquet: a row a picture of the scored split, in its order.

    Columns: index, row (its number in its file, from 0); right, said and true, the pixels of each class; prediction,
    the mask that the model gives, as a PNG.
    """
    table = pd.DataFrame({"row": list(source_rows(rows))})
    for place, name in enumerate(("right", "said", "true")):
        table[name] = counts_N3C[:, place].tolist()
    table["prediction"] = [_png(mask) for mask in masks]
    table.rename_axis("index").reset_index().to_parquet(output / "predictions.parquet", index=False)


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
