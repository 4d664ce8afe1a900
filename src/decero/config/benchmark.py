"""Define the settings of the benchmark: which model shapes to time, and on which texts or pictures."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from decero.config.race import OURS, STOCK, ProfileSection, RaceSection
from decero.config.run_config import RunConfig
from decero.config.scale import ScaleRun
from decero.config.sections import MOST_EXAMPLES, MOST_TOKENS, Section
from decero.config.shape import Shape
from decero.errors import UserError, did_you_mean

Kind = Literal["mlm", "causal", "seq2seq", "classification", "pictures", "decode"]
TrainingArm = Literal["stock fp32", "stock bf16", "tuned", "ours"]
ArmName = Literal[TrainingArm, "uncached"]

MOST_ROUNDS = 1_000_000


class RealTexts(Section):
    files: str | list[str] = Field(description="paths, globs or folders of txt, jsonl, csv, tsv or parquet")
    text_column: str = Field("text", description="column of the text")
    tokenizer: str = Field(description="tokenizer: hub name, folder or package:NAME/FOLDER")


class Workload(Section):
    kind: Kind = Field(
        description="task to time; seq2seq is span corruption, pictures their classification, decode greedy decoding"
    )
    model: Shape
    stock: str = Field(
        description="family of stock transformers models that runs the same weights: bert, gpt2, t5, vit ..."
    )
    batch_size: int = Field(32, ge=1, le=MOST_EXAMPLES, description="texts or pictures per step")
    batches: int = Field(
        1, ge=1, le=MOST_EXAMPLES, description="steps timed together as one measurement, like a short epoch"
    )
    length: int = Field(
        128,
        ge=8,
        le=MOST_TOKENS,
        description="tokens of a full text; size of packed rows, and limit at which stock models truncate",
    )
    fill: float = Field(
        1.0, gt=0, le=1, description="mean text length as a share of `length`; lengths vary evenly around it"
    )
    padding: Literal["longest", "max_length"] = Field("longest", description="how the stock arms pad a batch")
    mlm_probability: float = Field(
        0.15, gt=0, lt=1, description="kind mlm: share of the tokens that are masked and scored"
    )
    rounds: int = Field(
        11, ge=1, le=MOST_ROUNDS, description="times to measure each arm; the order of the arms changes every round"
    )
    texts: RealTexts | None = Field(None, description="real texts to use; random ids when not set")
    compile: bool = Field(False, description="compile the layers of tuned and `ours`, as with training.compile")
    tricks: bool = Field(
        True,
        description="false: `ours` runs like stock fp32 (padded, plain loss or `generate`), to compare the code alone",
    )
    answer_length: int | None = Field(
        None,
        ge=1,
        le=MOST_TOKENS,
        description="kind decode: tokens per answer; about the length of the source when not set",
    )
    uncached: bool = Field(False, description="kind decode: add an arm that runs `generate` without a cache")
    bf16: bool = Field(False, description="kind decode: keep weights of both arms in bfloat16 instead of fp32")
    at_least: dict[ArmName, Annotated[float, Field(gt=0, le=1000)]] = Field(
        {}, description="arm -> target: `ours` should be at least this many times faster"
    )
    memory_at_most: float | None = Field(
        None, gt=0, le=1000, description="target: peak memory of `ours` as a share of stock fp32's, at most"
    )

    @model_validator(mode="after")
    def _drawn(self):
        if self.kind == "pictures" and self.texts is not None:
            raise ValueError("texts: the pictures of kind pictures are drawn at random; remove it")
        return self

    def arms(self) -> tuple[ArmName, ...]:
        """Return the arms to time, in order."""
        if self.kind == "decode":
            stock: ArmName = "stock bf16" if self.bf16 else "stock fp32"
            return (stock, "ours", "uncached") if self.uncached else (stock, "ours")
        return get_args(TrainingArm) if self.tricks else ("stock fp32", "ours")


class Benchmark(RunConfig):
    publishes = "a benchmark keeps no model"

    works: dict[str, Workload] = Field({}, description="name -> workload")
    race: RaceSection | None = Field(None, description="instead of works: run until the loss of a stock recipe")
    scale: dict[str, ScaleRun] = Field(
        {}, description="instead of works: name -> run on accelerators, whose time and memory are computed"
    )
    profile: ProfileSection | None = Field(
        None, description="say where the time of a training step goes, instead of timing arms against each other"
    )
    only: list[str] | None = Field(
        None,
        description="workloads to run; in a race, what to run beside stock and ours; all when not set",
    )
    warmup_rounds: int = Field(
        1, ge=1, le=MOST_ROUNDS, description="rounds to run first and not count: they include one-time setup"
    )
    memory: bool = Field(True, description="also measure peak memory, in a separate pass after timing")

    @model_validator(mode="after")
    def _one_kind(self):
        if sum((bool(self.works), self.race is not None, bool(self.scale))) != 1:
            raise ValueError("give exactly one of works, race and scale")
        if self.profile is not None:
            if not self.works:
                raise ValueError("profile looks into the steps of works, not of a race or of scale; remove one")
            if decoding := [name for name, work in self.works.items() if work.kind == "decode"]:
                raise ValueError(f"profile looks into training steps; remove works.{decoding[0]}, which decodes")
        return self

    def chosen(self) -> dict[str, Workload]:
        """Return the workloads to run. Raises UserError for an unknown name in `only`."""
        self._check_only(self.works, "workload")
        return {name: work for name, work in self.works.items() if self.only is None or name in self.only}

    def forecasts(self) -> dict[str, ScaleRun]:
        """Return the runs to compute. Raises UserError for an unknown name in `only`."""
        self._check_only(self.scale, "run")
        return {name: each for name, each in self.scale.items() if self.only is None or name in self.only}

    def racing(self) -> list[str]:
        """Return the names of the runs: stock, ours, and those in `only`. Raises UserError for an unknown name."""
        assert self.race is not None
        self._check_only(self.race.names, "candidate")
        return [name for name in self.race.names if self.only is None or name in (STOCK, OURS, *self.only)]

    def _check_only(self, names: Any, what: str) -> None:
        for name in self.only or ():
            if name not in names:
                near = did_you_mean(name, names) or f"; known: {', '.join(names)}"
                raise UserError(f"only: unknown {what} {name}{near}")
