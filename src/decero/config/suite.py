"""Define the settings of a suite: several tasks, the same contenders in each."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from decero.config.comparison import ONE_FOR_ALL, Contender
from decero.config.run_config import RunConfig
from decero.config.sections import LARGEST_SEED, MOST_ROWS, OptimSection, Section, TrainingSection
from decero.errors import did_you_mean

Budgets = list[Annotated[int, Field(ge=1, le=MOST_ROWS)] | None]


class SuiteTask(Section):
    recipe: str = Field("finetune_classification", description="what is trained: the name of a recipe that trains")
    config: str | None = Field(
        None, description="YAML file of that recipe; only its data, objective and generation are used"
    )
    data: dict[str, Any] = Field({}, description="as in the recipe, without max_train_rows; replaces those of the file")
    objective: dict[str, Any] = Field({}, description="as in the recipe; replaces those of the file")
    generation: dict[str, Any] = Field({}, description="as in the recipe, where models write text")
    optim: dict[str, Any] = Field({}, description="settings of optim that differ for this task")
    training: dict[str, Any] = Field({}, description="settings of training that differ for this task")
    metric: str | None = Field(None, description="the metric to average; by default the task's main metric")
    label_budgets: Budgets | None = Field(
        None, min_length=1, description="label budgets of this task, where they differ: as many as those of the suite"
    )


class EvaluateSuite(RunConfig):
    publishes = "a suite publishes no model; set it when you train the winner"

    title: str = Field("A suite of tasks", description="headline of the report")
    tasks: dict[str, SuiteTask] = Field(description="name -> a task of the suite")
    contenders: dict[str, Contender] = Field(
        description="name -> a model, or a baseline, to compare; baseline: first is each task's first one. A task "
        "without such a baseline leaves it out"
    )
    reference: str = Field(description="name of the contender that all others are compared with")
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        [0, 1, 2], min_length=1, description="one run per seed, task and contender"
    )
    label_budgets: Budgets = Field(
        [None], min_length=1, description="labelled examples of each task; null: all of train"
    )
    optim: OptimSection = OptimSection()
    training: TrainingSection

    @model_validator(mode="after")
    def _known_names(self):
        if not self.tasks:
            raise ValueError("tasks: name at least one task")
        if self.reference not in self.contenders:
            near = did_you_mean(self.reference, self.contenders) or f"; there are {', '.join(self.contenders)}"
            raise ValueError(f"reference: unknown contender {self.reference}{near}")
        if self.contenders[self.reference].model is None:
            raise ValueError("reference: choose a model; a baseline is not in every task")
        for name, task in self.tasks.items():
            for key in ONE_FOR_ALL:
                if key in task.training:
                    raise ValueError(f"tasks.{name}.training.{key}: cannot differ between tasks; set training.{key}")
            if task.label_budgets is not None and len(task.label_budgets) != len(self.label_budgets):
                raise ValueError(
                    f"tasks.{name}.label_budgets: {len(task.label_budgets)} budgets, where the suite has "
                    f"{len(self.label_budgets)}; an average needs as many"
                )
        return self
