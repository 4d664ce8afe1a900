"""Define the settings of a comparison: a task, contenders, seeds, label budgets, tuning."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from decero.config.rivals import rivals_of
from decero.config.run_config import RunConfig
from decero.config.sections import (
    LARGEST_SEED,
    MOST_ROWS,
    ModelSection,
    OptimSection,
    Section,
    TokenizerSection,
    TrainingSection,
)
from decero.config.training_run import PeftSection
from decero.errors import did_you_mean

TUNABLE = ("optim", "training")
ONE_FOR_ALL = ("mixed_precision", "num_processes")
MOST_POINTS = 1_000_000  # of a grid
TAUGHT_BY = "contender:"  # before the name of a contender that teaches another one


class ContenderModel(ModelSection):
    pretrained: list[str] = Field(
        [],
        description="instead of name_or_path: checkpoints that one recipe pretrained with different seeds; the first "
        "of the seeds starts from the first, the next from the next, and again from the start",
    )

    @model_validator(mode="after")
    def _different(self):
        if len(set(self.pretrained)) < len(self.pretrained):
            raise ValueError("model.pretrained: a checkpoint appears twice; remove one")
        return self

    def sources(self) -> list[Any]:
        return super().sources() + ([self.pretrained] if self.pretrained else [])

    def of_run(self, place: int) -> dict[str, Any]:
        """Return the settings of the model for the seed at this place in `seeds`."""
        settings = self.model_dump(exclude={"pretrained"})
        return settings | ({"name_or_path": self.pretrained[place % len(self.pretrained)]} if self.pretrained else {})


def flat(tune: Any) -> Any:
    """`{optim: {learning_rate: [...]}}` says the same as `{optim.learning_rate: [...]}`."""
    if not isinstance(tune, dict):
        return tune
    found: dict[str, Any] = {}
    for key, values in tune.items():
        found |= {f"{key}.{name}": each for name, each in values.items()} if isinstance(values, dict) else {key: values}
    return found


Grid = Annotated[dict[str, list[Any]], BeforeValidator(flat)]


class Contender(Section):
    """Describe one contender. Its `optim` and `training` override the shared settings."""

    model: ContenderModel | None = Field(None, description="the model to train")
    tfidf: bool = Field(False, description="the same as baseline: tfidf")
    baseline: str | None = Field(
        None,
        description="a simple baseline instead of a model: tfidf (words and pairs + logistic regression) for "
        "classification; lexicon (the most common tag of each word) for words; ngram (byte 6-grams) for causal "
        "models; copy or lead (the source, or its first words) for pairs of texts; sentence (the one most like the "
        "question) or no_answer for question answering; overlap (the choice most like its question) for choices; "
        "logistic (regression on pixels) or cnn (two convolutions) for pictures; majority (the most common "
        "class) for pixels; mean_box (the mean box of each class) for objects",
    )
    tokenizer: TokenizerSection = TokenizerSection()
    peft: PeftSection | None = Field(None, description="train an adapter only, as in the task's own recipe")
    optim: dict[str, Any] = Field({}, description="settings of optim that differ for this contender")
    training: dict[str, Any] = Field({}, description="settings of training that differ for this contender")
    tune: Grid = Field(
        {}, description="values of this contender for a key of the grid of tune, as many as it has there"
    )
    distill: dict[str, Any] = Field(
        {},
        description="objective.distill of this contender; teacher: contender:NAME is the model that contender NAME "
        "trains with the same seed and labels",
    )

    @model_validator(mode="after")
    def _one_kind(self):
        if self.tfidf + (self.baseline is not None) + (self.model is not None) != 1:
            raise ValueError("a contender is one of model, baseline and tfidf: true")
        if self.peft is not None and self.model is None:
            raise ValueError("peft adapts a model, and this contender is a baseline; remove it")
        return self

    @property
    def baseline_name(self) -> str | None:
        """The name of the baseline; None for a model."""
        return "tfidf" if self.tfidf else self.baseline

    @property
    def teacher(self) -> str | None:
        """The name of the contender that teaches this one; None for none."""
        name = str(self.distill.get("teacher", ""))
        return name.removeprefix(TAUGHT_BY) if name.startswith(TAUGHT_BY) else None

    @property
    def own(self) -> dict[str, Any]:
        """The contender's own settings: `optim.learning_rate` -> value."""
        return {f"{section}.{key}": value for section in TUNABLE for key, value in getattr(self, section).items()}


class Compare(RunConfig):
    may_grow = ("contenders",)
    publishes = "a comparison publishes no model; set it when you train the winner"

    title: str = Field("Which model to ship", description="headline of the report")
    task: str = Field("finetune_classification", description="what is trained: the name of a recipe that trains")
    contenders: dict[str, Contender] = Field(description="name -> a model, or a baseline, to compare")
    reference: str = Field(description="name of the contender that all others are compared with")
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        [0, 1, 2], min_length=1, description="one run per seed: it sets weights, data order, dropout and label budget"
    )
    label_budgets: list[Annotated[int, Field(ge=1, le=MOST_ROWS)] | None] = Field(
        [None], min_length=1, description="labelled examples, or pairs of texts of each set; null: all of train"
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="cross-validation for small data: number of parts; the seed divides train into parts; each part "
        "is the test split once, and models train on the others; scores are of all rows",
    )
    keep_models: bool = Field(False, description="also save model/ of every run, not only predictions and metrics")
    metric: str | None = Field(None, description="the metric that decides; by default the task's main metric")
    data: dict[str, Any] = Field(description="as in the task's own recipe, without max_train_rows")
    objective: dict[str, Any] = Field({}, description="as in the task's own recipe")
    generation: dict[str, Any] = Field({}, description="as in the task's own recipe, where models write text")
    optim: OptimSection = OptimSection()
    training: TrainingSection
    tune: Grid = Field(
        {}, description="optim.KEY or training.KEY -> values: a grid that every contender is tuned over, on validation"
    )
    trials: int | None = Field(
        None, ge=1, le=MOST_POINTS, description="number of points of the grid to try, drawn by the seed; null: all"
    )

    @model_validator(mode="after")
    def _known_names(self):
        if self.reference not in self.contenders:
            near = did_you_mean(self.reference, self.contenders) or f"; there are {', '.join(self.contenders)}"
            raise ValueError(f"reference: unknown contender {self.reference}{near}")
        for name, values in (("seeds", self.seeds), ("label_budgets", self.label_budgets)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value appears twice; remove one")
        several: dict[int, str] = {}  # number of checkpoints -> the first contender with so many
        for name, contender in self.contenders.items():
            checkpoints = len(contender.model.pretrained) if contender.model else 0
            if checkpoints > 1:
                several.setdefault(checkpoints, name)
            if checkpoints and len(self.seeds) % checkpoints:
                raise ValueError(
                    f"seeds: {len(self.seeds)} seeds do not share {checkpoints} checkpoints evenly "
                    f"(contenders.{name}.model.pretrained); give a multiple of {checkpoints}"
                )
            for key in ONE_FOR_ALL:
                if key in contender.training:
                    raise ValueError(
                        f"contenders.{name}.training.{key}: cannot differ between contenders; set training.{key}"
                    )
        if len(several) > 1:
            (some, one), (more, other) = list(several.items())[:2]
            raise ValueError(
                f"contenders.{other}.model.pretrained: {more} checkpoints, but {one} has {some}; seeds would share "
                "checkpoints, so no interval holds; give every contender one checkpoint or the same number"
            )
        if self.data.get("fold") is not None:
            raise ValueError("data.fold: a comparison tests on every fold; set folds instead")
        if self.folds and self.data.get("test_fraction"):
            raise ValueError("data.test_fraction: with folds, every row of train is tested; remove one of them")
        if self.data.get("max_train_rows") is not None:
            raise ValueError("data.max_train_rows: a comparison uses label_budgets instead; set those")
        return self

    @model_validator(mode="after")
    def _who_teaches(self):
        for name, contender in self.contenders.items():
            where, teacher = f"contenders.{name}.distill", contender.teacher
            if contender.distill and contender.model is None:
                raise ValueError(f"{where}: a baseline learns from no teacher; remove it")
            if teacher is None:
                continue
            if teacher not in self.contenders:
                near = did_you_mean(teacher, self.contenders) or f"; there are {', '.join(self.contenders)}"
                raise ValueError(f"{where}.teacher: unknown contender {teacher}{near}")
            if self.contenders[teacher].model is None or self.contenders[teacher].teacher is not None:
                raise ValueError(
                    f"{where}.teacher: {teacher} is a baseline, or is taught itself; name a contender with a model "
                    "that no contender teaches"
                )
            if self.tune:
                raise ValueError(
                    f"{where}.teacher: {teacher} is trained after the trials of tune; give the folder of a model"
                )
        return self

    @model_validator(mode="after")
    def _what_is_tuned(self):
        for key, values in self.tune.items():
            room, _, name = key.partition(".")
            if room not in TUNABLE or not name or "." in name or name in ONE_FOR_ALL:
                raise ValueError(f"tune.{key}: tune settings of optim and training, such as optim.learning_rate")
            if not values or any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"tune.{key}: give different values to try, at least one")
            for contender, each in self.contenders.items():
                if key in each.own:
                    raise ValueError(f"contenders.{contender}.{key}: is tuned; leave it out here, or tune.{key}")
                for rival in sorted(rivals_of(name)):
                    if f"{room}.{rival}" in each.own:
                        raise ValueError(
                            f"contenders.{contender}.{room}.{rival}: tune.{key} takes its place; leave one of them out"
                        )
        for contender, each in self.contenders.items():
            for key, values in each.tune.items():
                where = f"contenders.{contender}.tune.{key}"
                if key not in self.tune:
                    near = did_you_mean(key, self.tune) or "; all contenders are tuned over the same settings"
                    raise ValueError(f"{where}: is no key of tune{near}")
                if len(values) != len(self.tune[key]) or any(v in values[:n] for n, v in enumerate(values)):
                    raise ValueError(f"{where}: give {len(self.tune[key])} different values, as many as tune.{key} has")
        points = math.prod(map(len, self.tune.values())) if self.tune else 0
        if points > MOST_POINTS:
            raise ValueError(f"tune: a grid of {points:,} points; give fewer values, at most {MOST_POINTS:,} points")
        if self.trials is not None and self.trials > points:
            raise ValueError(
                f"trials: {self.trials} exceeds the {points} points of the grid; leave it out or add values"
            )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output)
