"""The settings of the benchmark: which shapes are timed, on which texts."""

from typing import Any, Literal, get_args

from pydantic import Field

from decero.config.run_config import RunConfig
from decero.config.sections import Section
from decero.errors import UserError, did_you_mean

Kind = Literal["mlm", "causal", "seq2seq", "classification", "decode"]
TrainingArm = Literal["stock fp32", "stock bf16", "tuned", "ours"]
ArmName = Literal[TrainingArm, "uncached"]


class Shape(Section):
    config: str = Field(description="YAML preset of one of our architectures (configs/model/); random weights")
    overrides: dict[str, Any] = Field({}, description="fields of the model's configuration to change")


class RealTexts(Section):
    files: str | list[str] = Field(description="paths, globs or folders of txt, jsonl, csv, tsv or parquet")
    text_column: str = Field("text", description="column of the text")
    tokenizer: str = Field(description="tokenizer: hub name, folder or package:NAME/FOLDER")


class Workload(Section):
    kind: Kind = Field(description="the task; seq2seq is span corruption, decode is greedy decoding")
    model: Shape
    stock: str = Field(description="family of transformers that holds the very same weights: bert, gpt2, t5 ...")
    batch_size: int = Field(32, ge=1, description="texts a step")
    batches: int = Field(1, ge=1, description="steps that are timed as one: more than one is an epoch")
    length: int = Field(
        128, ge=8, description="tokens of a full text; what packed rows hold and stock models truncate at"
    )
    fill: float = Field(1.0, gt=0, le=1, description="mean length of a text over `length`, spread evenly around it")
    padding: Literal["longest", "max_length"] = Field("longest", description="how far the stock example pads a batch")
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are scored, with kind mlm")
    rounds: int = Field(11, ge=1, description="how often every arm is timed, in an order drawn anew")
    texts: RealTexts | None = Field(None, description="take these instead of random ids of the lengths that fill says")
    tricks: bool = Field(
        True,
        description="false: ours does as stock fp32 does, padded, with its own loss or `generate`: what the code costs",
    )
    answer_length: int | None = Field(
        None, ge=1, description="kind decode: tokens of every answer; about as many as its source has when not set"
    )
    uncached: bool = Field(False, description="kind decode: an arm more, ours by `generate` without a cache")
    bf16: bool = Field(False, description="kind decode: weights of both arms in bfloat16 instead of fp32")
    at_least: dict[ArmName, float] = Field({}, description="how much faster than an arm ours is meant to be")
    memory_at_most: float | None = Field(
        None, gt=0, description="share of stock fp32's peak memory ours is meant to take"
    )

    def arms(self) -> tuple[ArmName, ...]:
        """Who takes part, in order."""
        if self.kind == "decode":
            stock: ArmName = "stock bf16" if self.bf16 else "stock fp32"
            return (stock, "ours", "uncached") if self.uncached else (stock, "ours")
        return get_args(TrainingArm) if self.tricks else ("stock fp32", "ours")


class Benchmark(RunConfig):
    works: dict[str, Workload] = Field(min_length=1, description="name -> work")
    only: list[str] | None = Field(None, description="names of works to run; all when not set")
    warmup_rounds: int = Field(1, ge=1, description="rounds that are not counted: the first makes what is made once")
    memory: bool = Field(True, description="measure peak memory, too, when the clock has stopped")

    def chosen(self) -> dict[str, Workload]:
        """The works to run. Raises UserError for a name that is none."""
        for name in self.only or ():
            if name not in self.works:
                near = did_you_mean(name, self.works) or f"; there are {', '.join(self.works)}"
                raise UserError(f"only: {name} is no work{near}")
        return {name: work for name, work in self.works.items() if self.only is None or name in self.only}
