"""Object detection by set prediction, with any model that returns `pred_boxes` and `logits` for it, as DETR does.

The last column of `logits` must stand for no object. YOLOS and our detector have it, too. Models with a sigmoid for
each class have none, such as Conditional DETR, Deformable DETR and RT-DETR: they are refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset
from torch import nn
from transformers import AutoModelForObjectDetection, PreTrainedModel

from decero.config.finetune_images import FinetuneObjectDetection
from decero.config.sections import ModelSection
from decero.data.box_noise import BoxNoise
from decero.data.boxes import Boxes, check_pixels
from decero.data.corpus import check_column, source_rows, train_examples
from decero.data.image_rows import Columns, objects_of
from decero.data.labels import in_known_order, natural_order
from decero.errors import UserError
from decero.evaluation.average_precision import (
    BOX_METRICS,
    average_precision,
    box_statistics,
    need_pycocotools,
)
from decero.evaluation.examples import ExampleStatistics
from decero.execution.build import config_of
from decero.execution.detection_objective import Weights, blank_logits, check_no_object, detection
from decero.execution.image_objective import PictureCollator
from decero.execution.objective import Objective
from decero.inference.image_answers import read_boxes
from decero.tasks.base import Corpus, Scores, TaskData
from decero.tasks.label_predictions import check_same_labels, renumbered
from decero.tasks.picture_task import PictureTask
from decero.training.evaluation import mean_loss, predict_rows
from decero.training.records import read_record
from decero.training.runs import Run


class ObjectDetection(PictureTask):
    recipe, Config = "finetune_object_detection", FinetuneObjectDetection
    command = "detect"
    auto_class = AutoModelForObjectDetection
    head = "ForObjectDetection"
    baselines = ("mean_box",)

    def __init__(self, config: FinetuneObjectDetection):
        super().__init__(config)
        need_pycocotools()  # rather now than after training
        if config.objective.denoising and getattr(config_of(config.model), "queries", None) != "anchors":
            source = config.model.config or config.model.name_or_path
            raise UserError(
                f"objective.denoising: the queries of {source} are no boxes; remove it, or start from "
                "model.config=configs/model/detr_tiny.yaml"
            )
        if not config.objective.auxiliary_loss and getattr(config_of(config.model), "proposals", False):
            source = config.model.config or config.model.name_or_path
            raise UserError(
                f"objective.auxiliary_loss: proposals of {source} learn from auxiliary losses; set it to true"
            )

    def usage(self, folder: Path) -> list[str]:
        return [f"decero detect {folder} PICTURE --out FOLDER"]

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The pictures with their objects, train cut to the label budget. `label_names` are the categories of train."""
        notes: list[str] = []
        data = self.config.data
        corpus = self.load_pictures(notes)
        for split, rows in corpus.items():
            check_column(rows, data.objects_column, split, "data.objects_column")
        named = {"train": corpus["train"]} if "train" in corpus else corpus
        self._classes = class_label(next(iter(named.values())), data.objects_column, data.category_field)
        self._written = self._categories(named)
        names = sorted(dict.fromkeys(self._written.values()), key=natural_order)
        if self._classes:
            names = [name for name in self._classes.names if name in names]
        if self.config.eval_only:
            check_same_labels(str(self.config.model.name_or_path), self.known, names)
            names = in_known_order(names, self.known, some=True) or self.known
        elif self.known:
            kept = in_known_order(names, self.known)
            names = kept or names
            notes.append(
                f"{self.config.model.name_or_path}: the head is {'kept' if kept else 'new'}: {', '.join(names[:20])}"
            )
        self.cut_train(corpus, "objects", notes)
        splits = {split: {"": rows} for split, rows in corpus.items()}
        return Corpus(splits, (data.image_column,), tuple(names), tuple(notes))

    def _categories(self, splits: Mapping[str, Dataset]) -> dict[Any, str]:
        """Return the categories that occur: as the column has them -> name."""
        data, place = self.config.data, Columns(self.config.data.image_column)
        place = replace(place, objects=data.objects_column, bbox=data.box_field, category=data.category_field)
        found: set[Any] = set()
        for split, rows in splits.items():
            where = self.place_of(split)
            for number, row in zip(source_rows(rows), rows.select_columns([data.objects_column]), strict=True):
                found |= set(objects_of(row[data.objects_column], place, f"{where}, row {number}")[1])
        if not found:
            raise UserError(f"{next(iter(splits))}: column {data.objects_column!r} holds no object; nothing to learn")
        return {each: self.name_of(each) for each in found}

    def name_of(self, category: Any) -> str:
        """The name of a category as the column has it."""
        is_id = self._classes is not None and isinstance(category, int) and 0 <= category < len(self._classes.names)
        return self._classes.names[category] if is_id else str(category)  # type: ignore[union-attr]

    @cached_property
    def _ids(self) -> dict[Any, int]:
        """Category as the column has it -> class id of the model."""
        names = list(self.corpus.label_names)
        ids: dict[Any, int] = {name: number for number, name in enumerate(names)}
        written = self._classes.names if self._classes else []
        ids |= {number: ids[name] for number, name in enumerate(written) if name in ids}
        return ids | {each: ids[name] for each, name in self._written.items() if name in ids}

    def columns(self, split: str) -> Columns:
        data = self.config.data
        mask = data.mask_column if split == "train" and data.augment.copy_paste else None
        return replace(
            super().columns(split), objects=data.objects_column, bbox=data.box_field, category=data.category_field,
            box_format=data.box_format, category_ids=self._ids, mask=mask or "",
        )  # fmt: skip

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        check_pixels(self._boxes_of(parts[""], split))
        rows = super().tokenize(parts, split)
        queries = getattr(config_of(self.config.model), "num_queries", None)
        most = max(map(len, rows[""]["classes"]), default=0)
        pastes = self.config.data.augment.copy_paste > 0
        if split == "train" and queries and most * (1 + pastes) > queries:
            more = f" (and data.augment.copy_paste may add {most})" if pastes else ""
            raise UserError(
                f"train: a picture has {most} objects{more}, and the model {queries} queries; set "
                f"model.overrides.num_queries={2 * most}"
            )
        if split != "train" and not most:
            self.add_note(f"{split}: no picture has an object, so average precision is 0 whatever the model finds")
        return rows

    def _boxes_of(self, rows: Dataset, split: str) -> Iterator[tuple[str, list]]:
        """What messages call each picture of a split, and its boxes as they are written."""
        columns, where = self.columns(split), self.place_of(split)
        for number, row in zip(source_rows(rows), rows.select_columns([columns.objects]), strict=True):
            name = f"{where}, row {number}"
            yield name, objects_of(row[columns.objects], columns, name)[0]

    # --- model and objective

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The model with all weights trainable: stock DETR would freeze the whole of a native backbone.

        Raises UserError for a head without a column for "no object".
        """
        model = super().initial_model(section)
        if model.device.type != "meta":  # built only to be measured
            check_no_object(blank_logits(model, self.pixels), model, f"model: {section.config or section.name_or_path}")
        model.requires_grad_(True)
        return model

    def model_fields(self) -> dict[str, Any]:
        fields = super().model_fields()
        has_layers = hasattr(config_of(self.config.model), "auxiliary_loss")
        return fields | ({"auxiliary_loss": self.config.objective.auxiliary_loss} if has_layers else {})

    def _weights(self) -> Weights:
        given = self.config.objective
        return Weights(given.class_weight, given.box_weight, given.giou_weight, given.no_object_weight)

    def collator(self, trains: bool) -> PictureCollator:
        given, plain = self.config.objective.denoising, super().collator(trains)
        if not trains or given is None:
            return plain
        return replace(plain, noise=BoxNoise(**given.model_dump(), num_labels=self._count, seed=self.config.seed))

    def objective(self, model: nn.Module) -> Objective:
        return detection(self.collator(trains=True), self._weights(), self.config.objective.auxiliary_loss)

    def reported_objective(self, model: nn.Module) -> Objective:
        return detection(self.collator(trains=False), self._weights(), auxiliary=False)

    # --- evaluation

    def _predict(self, run: Run, model: nn.Module, rows: Dataset) -> list[Boxes]:
        """The boxes that the model finds in each picture, in its own pixels."""
        sizes = list(zip(rows["width"][:], rows["height"][:], strict=True))

        def read_out(bare: nn.Module, batch: Any, indices: list[int]) -> list[Boxes]:
            outputs = bare(pixel_values=batch["pixel_values"])
            return read_boxes(outputs.logits, outputs.pred_boxes, [sizes[index] for index in indices])

        size = run.training.per_device_eval_batch_size
        return predict_rows(run.accelerator, model, rows, self.reported_objective(model), size, read_out)

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        size = run.training.per_device_eval_batch_size
        loss = mean_loss(run.accelerator, model, rows, self.reported_objective(model), size)["loss"]
        return average_precision(self._predict(run, model, rows), true_boxes(rows), self._count) | {"loss": loss}

    @property
    def _count(self) -> int:
        return len(self.corpus.label_names)

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        rows = data.held_out[split][""]
        said, true = self._predict(run, model, rows), true_boxes(rows)
        if run.is_main:
            write_boxes(run.output, self.corpus.splits[split][""], said, true)
        facts: dict[str, Any] = {"label_names": list(self.corpus.label_names)} | train_examples(self.corpus.splits)
        return Scores(average_precision(said, true, self._count), facts | {"split": split})

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._predict(run, model, rows)

    # --- comparison

    @property
    def metrics(self) -> tuple[str, ...]:
        return BOX_METRICS

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "predictions.parquet")
        said, true = _lists(table, "predicted_boxes", "predicted_classes", "scores"), _lists(table, "boxes", "classes")
        names = list(self.corpus.label_names)
        theirs = read_record(folder).get("label_names", names)  # a run that keeps its head has its checkpoint's ids
        said, true = (
            [picture._replace(classes=renumbered(picture.classes, theirs, names)) for picture in pictures]
            for pictures in (said, true)
        )
        return box_statistics(metric, said, true, len(names) + 1)


def class_label(rows: Dataset, column: str, field: str) -> ClassLabel | None:
    """The ClassLabel of the categories, if the column has one."""
    feature: Any = rows.features[column]
    feature = getattr(feature, "feature", feature)
    feature = feature.get(field) if isinstance(feature, dict) else None
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, ClassLabel) else None


def true_boxes(rows: Dataset) -> list[Boxes]:
    """The objects of each picture, in its own pixels."""
    found = []
    for boxes, classes, width, height in zip(
        *(rows[name][:] for name in ("boxes", "classes", "width", "height")), strict=True
    ):
        shares = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        found.append(Boxes(shares * [width, height, width, height], np.array(classes, dtype=np.int64)))
    return found


def write_boxes(output: Path, rows: Dataset, said: list[Boxes], true: list[Boxes]) -> None:
    """predictions.parquet: a row a picture of the scored split, in its order.

    Columns: index, row (its number in its file, from 0); boxes (x1, y1, x2, y2 in pixels) and classes as they are;
    predicted_boxes, predicted_classes and scores as the model finds them.
    """
    table = pd.DataFrame({"row": list(source_rows(rows))})
    for prefix, each in (("", true), ("predicted_", said)):
        table[f"{prefix}boxes"] = [picture.boxes.tolist() for picture in each]
        table[f"{prefix}classes"] = [picture.classes.tolist() for picture in each]
    table["scores"] = [picture.scores.tolist() for picture in said]  # type: ignore[union-attr]
    table.rename_axis("index").reset_index().to_parquet(output / "predictions.parquet", index=False)


def _lists(table: pd.DataFrame, boxes: str, classes: str, scores: str = "") -> list[Boxes]:
    found = []
    for _, row in table.iterrows():
        corners = np.array([list(box) for box in row[boxes]], dtype=np.float64).reshape(-1, 4)
        sure = np.array(row[scores], dtype=np.float64) if scores else None
        found.append(Boxes(corners, np.array(row[classes], dtype=np.int64), sure))
    return found
