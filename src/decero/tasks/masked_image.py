"""Masked image modelling: hidden patches of pictures without labels (SimMIM: Xie et al. 2022)."""

from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import AutoModelForMaskedImageModeling

from decero.config.pretrain_images import PretrainMaskedImage
from decero.errors import UserError
from decero.execution.build import config_of
from decero.execution.masked_image_objective import MaskedPictures, masked_pictures, pixel_distances
from decero.execution.objective import Objective
from decero.tasks.base import Corpus
from decero.tasks.scored_pixels import ScoredPixels
from decero.training.evaluation import predict_rows
from decero.training.runs import Run


class MaskedImage(ScoredPixels):
    recipe, Config = "pretrain_masked_image", PretrainMaskedImage
    auto_class = AutoModelForMaskedImageModeling
    head = "ForMaskedImageModeling"
    budget_unit = ""
    error = "distance"

    @property
    def known(self) -> list[str]:
        return []

    def model_fields(self) -> dict[str, Any]:
        """The pixels that the decoder writes for each patch: a ViT can write no other number than it reads."""
        stock = config_of(self.config.model).model_type in ("vit", "deit")
        return {"encoder_stride": self.patch_size} if stock else {}

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

    def errors(self, run: Run, model: nn.Module, rows: Dataset) -> np.ndarray:
        """The summed differences of the hidden values of each picture, and their number: (rows, 2)."""
        collate = self._masked(trains=False)

        def read_out(bare: nn.Module, batch: Any, indices: list[int]) -> list[tuple[float, int]]:
            each = batch["pixel_values"][0].numel() // batch["bool_masked_pos"].shape[1]
            counts = (batch["bool_masked_pos"].sum(dim=1) * each).tolist()
            return list(zip(pixel_distances(bare, batch, collate.grid).tolist(), counts, strict=True))

        size = run.training.per_device_eval_batch_size
        return np.array(predict_rows(run.accelerator, model, rows, masked_pictures(collate), size, read_out))
