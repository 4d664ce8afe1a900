"""Diffusion: draw pictures of a class from noise (DiT: Peebles & Xie 2022; flow matching: Lipman et al. 2023)."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import AutoModel

from decero.config.pretrain_images import PretrainImageDiffusion
from decero.data.image_rows import Pixels
from decero.data.labels import encode_labels
from decero.errors import UserError
from decero.execution.build import config_of
from decero.execution.diffusion_objective import NoisedPictures, velocities, velocity_errors
from decero.execution.objective import Objective
from decero.models import DeceroDiffusionConfig
from decero.tasks.base import Corpus
from decero.tasks.scored_pixels import ScoredPixels
from decero.training.evaluation import predict_rows
from decero.training.runs import Run

KIND = "single_label_classification"  # one class a picture


class ImageDiffusion(ScoredPixels):
    recipe, Config = "pretrain_image_diffusion", PretrainImageDiffusion
    auto_class = AutoModel
    head = "DiffusionModel"
    error = "error"

    def usage(self, folder: Path) -> list[str]:
        return [f"decero draw {folder} --out grid.png"]

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The pictures with `labels`, train cut to the budget. Raises UserError for classes that a checkpoint lacks."""
        notes: list[str] = []
        corpus, names = encode_labels(
            self.load_pictures(notes), self.config.data.label_column, KIND, known=self.known, say=notes.append
        )
        if self.known and names != self.known:
            source = self.config.model.name_or_path
            raise UserError(
                f"{source}: it draws {', '.join(self.known[:20])}, and the data has {', '.join(names[:20])}; give "
                "pictures of its classes, or start from random weights (model.config)"
            )
        self.cut_train(corpus, KIND, notes)
        splits = {split: {"": rows} for split, rows in corpus.items()}
        return Corpus(splits, (self.config.data.image_column,), tuple(names), tuple(notes))

    @cached_property
    def pixels(self) -> Pixels:
        """The form of pictures: pixels in [-1, 1]. Raises UserError for a model of another kind."""
        config, section = config_of(self.config.model), self.config.model
        if config.model_type != DeceroDiffusionConfig.model_type:
            raise UserError(
                f"model: {section.config or section.name_or_path} is a {config.model_type}, which draws no pictures; "
                "use a decero_diffusion, such as configs/model/dit_tiny.yaml"
            )
        half = (0.5,) * config.num_channels
        return replace(super().pixels, mean=half, std=half)

    def _noised(self, trains: bool) -> NoisedPictures:
        dropout = self.config.objective.class_dropout if trains else 0.0
        classes = len(self.corpus.label_names)
        return NoisedPictures(self.collator(trains), classes, dropout, self.config.seed, frozen=not trains)

    def objective(self, model: nn.Module) -> Objective:
        return velocities(self._noised(trains=True))

    def reported_objective(self, model: nn.Module) -> Objective:
        return velocities(self._noised(trains=False))

    # --- evaluation

    def errors(self, run: Run, model: nn.Module, rows: Dataset) -> np.ndarray:
        """The summed squared errors of each picture, and the number of its values: (rows, 2)."""

        def read_out(bare: nn.Module, batch: Any, indices: list[int]) -> list[tuple[float, int]]:
            return [(error, batch["velocity"][0].numel()) for error in velocity_errors(bare, batch).tolist()]

        size = run.training.per_device_eval_batch_size
        return np.array(predict_rows(run.accelerator, model, rows, self.reported_objective(model), size, read_out))
