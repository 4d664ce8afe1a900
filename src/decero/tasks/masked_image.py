"""Masked image modelling: hidden patches of pictures without labels (SimMIM: Xie et al. 2022)."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn
from transformers import AutoModelForMaskedImageModeling

from decero.config.pretrain_images import PretrainMaskedImage
from decero.data.corpus import source_rows
from decero.errors import UserError
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import ExampleStatistics
from decero.execution.build import config_of
from decero.execution.masked_image_objective import MaskedPictures, masked_pictures, pixel_distances
from decero.execution.objective import Objective
from decero.tasks.base import Corpus, Scores, TaskData
from decero.tasks.picture_task import PictureTask
from decero.training.evaluation import predict_rows
from decero.training.runs import Run


class MaskedImage(PictureTask):
    recipe, Config = "pretrain_masked_image", PretrainMaskedImage
    auto_class = AutoModelForMaskedImageModeling
    head = "ForMaskedImageModeling"
    splits = ("train", "validation")
    budget_unit = ""
    scored_on = "validation"
    metrics = ("eval_loss",)

    @property
    def known(self) -> list[str]:
        return []

    def model_fields(self) -> dict[str, Any]:
        return {}

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The pictures, train cut to the budget."""
        notes: list[str] = []
        corpus = self.load_pictures(notes)
        self.cut_train(corpus, "", notes)
        splits = {split: {"": rows} for split, rows in corpus.items()}
        return Corpus(splits, (self.config.data.image_column,), notes=tuple(notes))

    @cached_property
    def patch_size(self) -> int:
        """Pixels of a side of a patch. Raises UserError for a model without patches that fill a picture."""
        section = self.config.model
        size: Any = section.overrides.get("patch_size", getattr(config_of(section), "patch_size", None))
        height, width = self.pixels.size
        source = section.config or section.name_or_path
        if not isinstance(size, int):
            raise UserError(
                f"model: {source} has no square patches to hide; use a ViT, such as configs/model/vit_tiny.yaml"
            )
        if height % size or width % size:
            raise UserError(
                f"data.image_size: patches of {size} do not fill {height} x {width} pixels; set a multiple of {size}"
            )
        return size

    def _masked(self, trains: bool) -> MaskedPictures:
        (height, width), size, settings = self.pixels.size, self.patch_size, self.config.objective
        square = settings.mask_patch_size or size
        if square % size or square >= max(height, width):
            raise UserError(
                f"objective.mask_patch_size: {square} is no multiple of the model's patches of {size} pixels, or hides "
                f"a picture of {height} x {width} as a whole; set {size}, or null"
            )
        grid = height // size, width // size
        collate = self.collator(trains)
        return MaskedPictures(collate, grid, settings.mask_ratio, square // size, self.config.seed, not trains)

    def objective(self, model: nn.Module) -> Objective:
        return masked_pictures(self._masked(trains=True))

    def reported_objective(self, model: nn.Module) -> Objective:
        return masked_pictures(self._masked(trains=False))

    # --- evaluation

    def _distances(self, run: Run, model: nn.Module, rows: Dataset) -> np.ndarray:
        """The summed differences of the hidden values of each picture, and their number: (rows, 2)."""
        collate = self._masked(trains=False)

        def read_out(bare: nn.Module, batch: Any, indices: list[int]) -> list[tuple[float, int]]:
            each = batch["pixel_values"][0].numel() // batch["bool_masked_pos"].shape[1]
            counts = (batch["bool_masked_pos"].sum(dim=1) * each).tolist()
            return list(zip(pixel_distances(bare, batch, collate.grid).tolist(), counts, strict=True))

        size = run.training.per_device_eval_batch_size
        return np.array(predict_rows(run.accelerator, model, rows, masked_pictures(collate), size, read_out))

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        if data.validation is None:
            return Scores({}, {})
        found = self._distances(run, model, data.validation)
        if run.is_main:
            rows = list(source_rows(self.corpus.splits["validation"][""]))
            table = pd.DataFrame({"row": rows, "distance": found[:, 0], "values": found[:, 1].astype(np.int64)})
            table.rename_axis("index").reset_index().to_parquet(run.output / "predictions.parquet", index=False)
        return Scores({"eval_loss": float(ratio(found.sum(axis=0)))}, {"split": "validation"})

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        """Per picture: the sum of the differences of its hidden values, and their number."""
        table = pd.read_parquet(folder / "predictions.parquet")
        return ExampleStatistics(table[["distance", "values"]].to_numpy(np.float64), ratio)

    def validation_metric(self, metric: str) -> str:
        return "loss"

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._distances(run, model, rows)
