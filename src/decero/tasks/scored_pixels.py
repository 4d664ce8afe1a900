"""What tasks share that predict pixels: each picture has the sum of its errors and the number of its values."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn

from decero.data.corpus import source_rows
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import ExampleStatistics
from decero.tasks.base import Scores, TaskData
from decero.tasks.picture_task import PictureTask
from decero.training.runs import Run


class ScoredPixels(PictureTask):
    """A task whose score is the mean error of predicted values. error: its column in `predictions.parquet`."""

    splits = ("train", "validation")
    scored_on = "validation"
    metrics = ("eval_loss",)
    error: ClassVar[str]

    @abstractmethod
    def errors(self, run: Run, model: nn.Module, rows: Dataset) -> np.ndarray:
        """The summed errors of each picture, and the number of its values: (rows, 2)."""

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        if data.validation is None:
            return Scores({}, {})
        found = self.errors(run, model, data.validation)
        if run.is_main:
            rows = list(source_rows(data.validation))  # a comparison scores those of test
            table = pd.DataFrame({"row": rows, self.error: found[:, 0], "values": found[:, 1].astype(np.int64)})
            table.rename_axis("index").reset_index().to_parquet(run.output / "predictions.parquet", index=False)
        return Scores({"eval_loss": float(ratio(found.sum(axis=0)))}, {"split": "validation"})

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        """Per picture: the sum of the errors of its values, and their number."""
        table = pd.read_parquet(folder / "predictions.parquet")
        return ExampleStatistics(table[[self.error, "values"]].to_numpy(np.float64), ratio)

    def validation_metric(self, metric: str) -> str:
        return "loss"

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self.errors(run, model, rows)
