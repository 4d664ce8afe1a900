"""What a task is: everything that recipes, doctor, forecast and comparison need to know of it, in one class."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decero.config.finetune_images import ImageRun
from decero.config.sections import ModelSection
from decero.config.training_run import TrainingRun
from decero.data.warmup import LengthWarmup
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics
from decero.execution.adapters import add_adapter
from decero.execution.build import build_model, tokenizer_for
from decero.execution.objective import Objective
from decero.execution.optimize import optimize
from decero.hub.forecast_export import export_line
from decero.planning.budget import within_budget
from decero.planning.forecast import Forecast, forecast
from decero.tasks.task_data import Corpus, Scores, TaskData, cut_note
from decero.training.evaluation import mean_loss
from decero.training.runs import Run, main_first

__all__ = ["Corpus", "Evaluate", "Scores", "Task", "TaskData", "cut_note"]

Evaluate = Callable[..., dict[str, float]]  # (model, rows=validation) -> metrics


class Task(ABC):
    """One thing that a model can be trained for.

    recipe: name of the script that trains it. Config: its settings. auto_class: which head the model has.
    tokenizer_needs: special tokens that the tokenizer must have. needs_offsets: whether it must be a fast one.
    splits: those that are read, None for all.
    most_epochs: how often `--budget` may read the same text. generates: whether the model writes text.
    length_settings: the settings that cut long texts. command: of `decero`, for a trained model; "" for none.

    For comparisons: baselines: names of simple baselines. budget_unit: what a label budget counts; "" for text without
    labels. token_metrics: metrics that compare only under the same tokenizer. scored_on: the split of the final scores.
    has_folds: whether `data.fold` makes a test split of a part of train.
    """

    recipe: ClassVar[str]
    Config: ClassVar[type[TrainingRun | ImageRun]]
    auto_class: Any  # a setting may choose another one for a run
    tokenizer_needs: ClassVar[tuple[str, ...]]
    needs_offsets: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...] | None] = None
    most_epochs: ClassVar[float] = 1
    generates: ClassVar[bool] = False
    length_settings: ClassVar[str] = "data.max_length"
    command: ClassVar[str] = ""
    baselines: ClassVar[tuple[str, ...]] = ()
    budget_unit: ClassVar[str] = ""
    token_metrics: ClassVar[tuple[str, ...]] = ()
    scored_on: ClassVar[str] = "validation"
    has_folds: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config = config
        self.training_objective: Objective | None = None  # set by `optimize`: perhaps over packed rows
        self.teacher_record: dict[str, Any] = {}  # of a distilled run, for result.json
        self.preparation_s = 0.0  # before the first step; estimated in a dry run

    # --- tokenizer and data

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that was named, or the checkpoint's own. Raises UserError for none, or for a missing token."""
        return self.load_tokenizer()

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        needs, fast = self.tokenizer_needs, self.needs_offsets
        return tokenizer_for(self.config.tokenizer, self.config.model, needs=needs, fast=fast)

    @property
    def processor(self) -> Any:
        """What turns examples into inputs, and is saved beside the model."""
        return self.tokenizer

    def usage(self, folder: Path) -> list[str]:
        """Return the commands of `decero` that use the trained model in `folder`."""
        return [f"decero {self.command} {folder} FILE"] if self.command else []

    @property
    def max_length(self) -> int:
        """Positions that the model must have."""
        return self.config.data.max_length

    @property
    def row_length(self) -> int:
        """Most tokens of a row as the model reads it."""
        return self.max_length

    @abstractmethod
    def read_corpus(self, strict: bool = True) -> Corpus:
        """The texts as they are. strict: refuse labels that train does not have; the doctor reports them instead."""

    @abstractmethod
    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        """part -> texts, to part -> rows of tokens. Raises UserError where no row is left."""

    def mix(self, rows: dict[str, Any]) -> Any:
        """The rows of all parts of train as one data set."""
        return rows[""]

    @cached_property
    def corpus(self) -> Corpus:
        """The texts, read once."""
        return self.read_corpus()

    def load_data(self, run: Run, splits: tuple[str, ...] | None = None) -> TaskData:
        """Read and tokenize the corpus; the main process goes first, to write the cache. splits: instead of its own."""
        wanted = splits or self.splits
        with main_first(run.accelerator):
            read = {split: parts for split, parts in self.corpus.splits.items() if split in (wanted or (split,))}
            if self.config.eval_only and self.scored_on == "validation" and "validation" not in read:
                raise UserError(
                    "--eval-only: there is no validation split to score on; give data.files.validation or "
                    "data.validation_fraction"
                )
            rows = {split: self.tokenize(parts, split) for split, parts in read.items()}
        # `--eval-only` needs no train split; rows to score then serve where packing is tested.
        train = self.mix(rows.pop("train") if "train" in rows else next(iter(rows.values())))
        for note in self.corpus.notes if run.progress else ():
            run.print(note)
        cut = sum(train["truncated"]) / len(train) if "truncated" in getattr(train, "column_names", ()) else 0
        kind = "training" if "train" in read else "scored"
        if cut and run.progress:
            run.print(f"{cut:.1%} of the {kind} texts are longer than {self.length_settings} and are cut")
        data = TaskData(train, rows)
        scores, trains = self.scored_on == "validation", not self.config.eval_only
        if data.validation is None and run.progress and trains and (scores or run.training.eval_strategy != "no"):
            lost = "nothing is evaluated during training" + (", and there are no final scores" if scores else "")
            run.print(f"no validation split: {lost}; validation_fraction=0.1 of the data holds rows out")
        if self.scored_on == "test":
            _ = data.scored_split  # refuse now what could not be scored after training
        return data

    # --- model and objective

    @property
    def distill(self) -> Any:
        """The settings of the teacher; None without one, and where nothing is trained."""
        return None if self.config.eval_only else self.config.objective.distill

    def model_fields(self) -> dict[str, Any]:
        """Fields of the model's configuration that the task decides, such as the labels of a classifier."""
        return {}

    def build_model(self, section: ModelSection | None = None) -> PreTrainedModel:
        """The model as the run starts, with a new adapter if the settings ask for one and there is training.

        section: another model for the same task, without an adapter. Raises UserError as `build_model` does.
        """
        source, peft = self.config.model, getattr(self.config, "peft", None)
        model = self.initial_model(section or source)
        if peft is None or section is not None or self.config.eval_only:
            return model
        return add_adapter(model, peft, source, self.auto_class, self.config.seed)

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The model without an adapter, with the head of the task; `--eval-only` asks that a checkpoint has it."""
        return build_model(
            section, self.auto_class, self.tokenizer, self.max_length, self.config.seed,
            new_head=not self.config.eval_only, **self.model_fields(),
        )  # fmt: skip

    @abstractmethod
    def objective(self, model: nn.Module) -> Objective:
        """What is trained: the collator and the loss."""

    @abstractmethod
    def reported_objective(self, model: nn.Module) -> Objective:
        """What evaluations report: without label smoothing, and with the same masks every time."""

    def optimize(self, run: Run, model: PreTrainedModel, data: TaskData) -> Objective:
        """The objective after choosing the attention kernel and packing rows where that is proven to be exact."""
        objective = self.objective(model)
        if share := getattr(self.config.data, "length_warmup", None):
            objective = replace(objective, collate=LengthWarmup(objective.collate, self.max_length, share))
        self.training_objective = optimize(
            run.accelerator, model, objective, data.train, self.row_length, run.training,
            quiet=not run.progress, attention=self.config.model.attn_implementation,
        )  # fmt: skip
        self.say_export(run, model)
        return self.training_objective

    def say_export(self, run: Run, model: Any) -> None:
        """Say at the start, in pretraining or from random weights, what `decero export` will make of the model."""
        said = run.progress and (self.recipe.startswith("pretrain") or self.config.model.config is not None)
        if said and (line := export_line(self.kept(model))):
            run.print(line)

    def kept(self, model: Any) -> PreTrainedModel:
        """The model that a run writes to model/, marked as it will be."""
        return model

    # --- evaluation

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """The metrics of validation rows during training; `loss` is one of them."""
        objective, size = self.reported_objective(model), run.training.per_device_eval_batch_size
        return {"loss": mean_loss(run.accelerator, model, rows, objective, size)["loss"]}

    def evaluator(self, run: Run, data: TaskData) -> Evaluate | None:
        """`evaluate` on the validation rows, or on some of them; None where there are none."""
        if data.validation is None:
            return None
        return lambda model, rows=data.validation: self.evaluate(run, model, rows, data)

    @abstractmethod
    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        """The final scores. Writes a row an example (or token) to predictions.parquet or outputs.parquet."""

    # --- comparison

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The metrics by which contenders can be compared, the main one first."""

    @abstractmethod
    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        """Return what each scored example adds to a metric, read from the files of a finished run.

        Every run on the same data gives the same examples in the same order.
        """

    def label_scores(self, folder: Path) -> dict[str, Any]:
        """Return what `per_class` finds in the answers of a finished run; {} for a task without labels."""
        return {}

    def validation_metric(self, metric: str) -> str:
        """Return the metric of `evaluate` that is nearest to a final metric; tuning uses it."""
        return metric

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:  # noqa: B027
        """The part of `score` whose time the forecast measures on a few rows; nothing by default."""

    def calibrate(self, run: Run, model: nn.Module, data: TaskData) -> None:  # noqa: B027
        """Choose on validation how outputs are read, after training; nothing by default."""

    def prepare_to_save(self, model: Any) -> None:  # noqa: B027
        """Write into the checkpoint what it was taught here, such as how it generates."""

    def save(self, run: Run, model: Any) -> None:
        """Write model/. All processes must call it."""
        run.save_model(model, self.processor)

    def own_costs(self, run: Run, result: Any, data: TaskData) -> dict[str, Any]:
        """Costs for result.json that are counted otherwise than those of text."""
        return {}

    @property
    def remark(self) -> str:
        """What to print behind the final scores."""
        return ""

    # --- planning

    def forecast(self, run: Run, model: PreTrainedModel, objective: Objective, data: TaskData) -> Forecast:
        """Print what the run would do and cost. Nothing is written."""
        times_scoring = type(self).scoring_pass is not Task.scoring_pass
        score = (lambda model, rows: self.scoring_pass(run, model, rows, data)) if times_scoring else None
        evaluate, first_s = self.evaluator(run, data), self.preparation_s
        return forecast(run, model, objective, data.train, data.validation, evaluate, score, first_s)

    def within_budget(self, run: Run, model: nn.Module, data: TaskData) -> Run:
        """The run with the shape, batch, steps and schedule that fit into `--budget`. `model` gives the objective."""
        evaluate, objective = self.evaluator(run, data), self.objective(model)
        found = within_budget(
            run, self.build_model, objective, data.train, data.validation, evaluate, self.most_epochs, self.row_length
        )
        self.config = found.config
        return found
