"""Define the settings of the long-range experiments: gradients, speed, recall, copying, ListOps."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from decero.config.benchmark import MOST_ROUNDS, Shape
from decero.config.model_numbers import check_model_numbers
from decero.config.run_config import RunConfig
from decero.config.sections import LARGEST_SEED, MOST_EXAMPLES, MOST_STEPS, MOST_TOKENS, Section
from decero.errors import did_you_mean

Rate = Annotated[float, Field(gt=0, le=1000)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]], Field(min_length=2)]
Length = Annotated[int, Field(ge=4, le=MOST_TOKENS)]


class Experiment(Section):
    """Hold what all experiments share."""

    arms: list[str] | None = Field(None, description="names of the arms to try; all when not set")
    overrides: dict[str, Any] = Field({}, description="sizes of all models of this experiment")

    @field_validator("overrides")
    @classmethod
    def _possible(cls, overrides):
        check_model_numbers(overrides, "overrides")
        return overrides


class Trained(Experiment):
    """Hold the settings of an experiment that trains every arm, with AdamW and a linear schedule."""

    length: Length = Field(description="most tokens of a row")
    seeds: Seeds = Field([0, 1, 2], description="one run per seed, for weights and rows")
    max_train_steps: int = Field(ge=1, le=MOST_STEPS, description="optimizer steps of every run")
    global_batch_size: int = Field(64, ge=1, le=MOST_EXAMPLES, description="rows per optimizer step")
    train_rows: int = Field(16_000, ge=1, le=MOST_EXAMPLES, description="rows to train on, drawn by the seed")

    @model_validator(mode="after")
    def _different(self):
        for name in ("seeds", "learning_rates"):
            values = getattr(self, name, [])
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value appears twice; remove one")
        return self


class Scored(Trained):
    """Hold the settings of an experiment that compares test accuracies, each arm with its best learning rate."""

    learning_rates: list[Rate] = Field(
        [1e-3, 3e-3, 1e-2],
        min_length=3,
        description="rates that every arm is tried with, on validation with the first seed; the best is for all seeds",
    )
    eval_rows: int = Field(500, ge=2, le=MOST_EXAMPLES, description="rows of validation, and rows of test")


class RecallWork(Scored):
    vocab_size: int = Field(ge=20, le=MOST_TOKENS, description="ids; a half are keys, a half values")
    num_pairs: int = Field(ge=1, le=MOST_TOKENS, description="pairs of key and value in a row, each asked for once")
    power: float = Field(
        0.01, gt=0, le=1, description="power law of the gaps before the questions; with 1, all are equally likely"
    )

    @model_validator(mode="after")
    def _room(self):
        if 4 * self.num_pairs > self.length:
            raise ValueError(f"recall.num_pairs {self.num_pairs} needs recall.length {4 * self.num_pairs}; raise it")
        if 10 * (self.num_pairs + 1) > self.vocab_size:  # a fifth of the values of a key are those of test
            raise ValueError(
                f"recall.num_pairs {self.num_pairs} needs recall.vocab_size {10 * (self.num_pairs + 1)}; raise it"
            )
        return self


class CopyingWork(Scored):
    vocab_size: int = Field(16, ge=5, le=MOST_TOKENS, description="ids, of which three are blank, question and padding")
    num_tokens: int = Field(ge=1, le=MOST_TOKENS, description="tokens to copy")

    @model_validator(mode="after")
    def _room(self):
        if 2 * self.num_tokens > self.length:
            raise ValueError(f"copying.num_tokens {self.num_tokens} needs a length of {2 * self.num_tokens}; raise it")
        return self


class ListOpsWork(Scored):
    max_depth: int = Field(3, ge=1, le=20, description="how deep expressions are nested")
    max_arguments: int = Field(5, ge=2, le=100, description="most arguments of an operation; the fewest are 2")

    @model_validator(mode="after")
    def _room(self):
        most, deepest = 0, 1
        for _ in range(self.max_depth):
            most, deepest = 2 + self.max_arguments * deepest, 2 + self.max_arguments * deepest
        if most < self.length // 2 or self.length < 2 * (self.max_arguments + 2):
            raise ValueError(
                f"list_ops.length {self.length}: rows have a half of it or more; give {2 * (self.max_arguments + 2)} "
                f"to {2 * most}, or other max_depth and max_arguments"
            )
        return self


class GradientsWork(Trained):
    seeds: Seeds = Field([0, 1, 2, 3, 4], description="one run per seed, for weights and rows")
    distances: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(
        min_length=2, description="steps back from the last output"
    )
    rows: int = Field(8, ge=1, le=MOST_EXAMPLES, description="rows to take the mean over")
    learning_rate: Rate = Field(1e-3, description="peak rate of the training between the two measurements")
    num_tokens: int = Field(4, ge=1, le=MOST_TOKENS, description="the training is selective copying of this many")
    vocab_size: int = Field(16, ge=5, le=MOST_TOKENS, description="ids of selective copying")

    @model_validator(mode="after")
    def _inside(self):
        if max(self.distances) >= self.length:
            raise ValueError(f"gradients.distances: {max(self.distances)} reaches beyond a row; raise gradients.length")
        if 2 * self.num_tokens > self.length:
            raise ValueError(
                f"gradients.num_tokens {self.num_tokens} needs a length of {2 * self.num_tokens}; raise it"
            )
        self.distances = sorted(set(self.distances))
        return self


class SpeedWork(Experiment):
    lengths: list[Length] = Field(min_length=1, description="tokens per row; each batch has the same number of tokens")
    batch_tokens: int = Field(4096, ge=4, le=MOST_TOKENS, description="tokens of a batch")
    rounds: int = Field(5, ge=3, le=MOST_ROUNDS, description="times to measure each arm at each length")
    vocab_size: int = Field(256, ge=2, le=MOST_TOKENS, description="ids of the random rows")

    @model_validator(mode="after")
    def _fits(self):
        if max(self.lengths) > self.batch_tokens:
            raise ValueError(f"speed.batch_tokens {self.batch_tokens} holds no row of {max(self.lengths)}; raise it")
        self.lengths = sorted(set(self.lengths))
        return self


EXPERIMENTS = ("gradients", "speed", "recall", "copying", "list_ops")


class LongRange(RunConfig):
    publishes = "an experiment keeps no model"

    arms: dict[str, Shape] = Field(min_length=2, description="name -> a decoder to compare, of random weights")
    reference: str = Field(description="name of the arm that the claims are about")
    gradients: GradientsWork | None = Field(None, description="gradient of the last output, by distance of the input")
    speed: SpeedWork | None = Field(None, description="training speed, by length of the rows")
    recall: RecallWork | None = Field(None, description="multi-query associative recall")
    copying: CopyingWork | None = Field(None, description="selective copying")
    list_ops: ListOpsWork | None = Field(None, description="values of nested expressions")

    @model_validator(mode="after")
    def _known_names(self):
        if not self.experiments():
            raise ValueError(f"nothing to do; give one of {', '.join(EXPERIMENTS)}")
        named = {"reference": [self.reference]}
        named |= {f"{name}.arms": work.arms or [] for name, work in self.experiments().items()}
        for key, names in named.items():
            for arm in names:
                if arm not in self.arms:
                    near = did_you_mean(arm, self.arms) or f"; there are {', '.join(self.arms)}"
                    raise ValueError(f"{key}: unknown arm {arm}{near}")
        for name, work in self.experiments().items():
            if work.arms is not None and (self.reference not in work.arms or len(set(work.arms)) < 2):
                raise ValueError(f"{name}.arms: name {self.reference}, the reference, and at least one other")
        return self

    def experiments(self) -> dict[str, Any]:
        """Return the experiments to do, in order: name -> settings."""
        return {name: getattr(self, name) for name in EXPERIMENTS if getattr(self, name) is not None}

    def shapes(self, work: Experiment) -> dict[str, Shape]:
        """Return the arms of an experiment, the reference first: name -> preset with the sizes of the experiment."""
        names = [self.reference, *(name for name in work.arms or self.arms if name != self.reference)]
        return {
            name: Shape(config=self.arms[name].config, overrides=work.overrides | self.arms[name].overrides)
            for name in names
        }
