"""Define the settings of a race to a loss: a stock recipe, ours, and candidates that change ours."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from decero.config.explain import explain
from decero.config.pretraining import PretrainCausalLM, Pretraining, PretrainMLM, PretrainSeq2Seq
from decero.config.rivals import displace
from decero.config.sections import (
    LARGEST_SEED,
    MOST_EXAMPLES,
    MOST_ROWS,
    MOST_STEPS,
    DataSection,
    ModelSection,
    Section,
    TokenizerSection,
)
from decero.config.yaml_files import put
from decero.errors import UserError, did_you_mean

RECIPES: dict[str, type[Pretraining]] = {
    "pretrain_mlm": PretrainMLM,
    "pretrain_causal_lm": PretrainCausalLM,
    "pretrain_seq2seq": PretrainSeq2Seq,
}
OURS, STOCK = "ours", "stock"
MAY_CHANGE = (
    "model",
    "objective",
    "optim",
    "training",
    "data.max_length",
    "data.length_warmup",
)  # by ours and its candidates
DECIDED = {  # settings of training that the race decides
    "eval_strategy": "a race evaluates every eval_steps",
    "num_train_epochs": "a race has a planned number of steps; set training.max_train_steps",
    "metric_for_best_model": "a race stops at the loss of the stock recipe",
    "early_stopping_patience": "a race stops at the loss of the stock recipe",
    "num_processes": "a race is run in one process",
}


class StockRecipe(Section):
    """Hold the settings of the stock recipe. Defaults are those of transformers' no-trainer examples."""

    model: ModelSection = Field(description="preset of a stock class (configs/model/); random weights")
    max_train_steps: int = Field(ge=1, le=MOST_STEPS, description="optimizer steps; the loss after them is the target")
    rows: Literal["concatenated", "padded"] = Field(
        "concatenated", description="join texts and cut them to full rows, or one text a row, padded to the longest"
    )
    per_device_train_batch_size: int = Field(8, ge=1, le=MOST_EXAMPLES, description="rows per step")
    learning_rate: float = Field(5e-5, gt=0, le=1000, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="weight decay, but of biases and LayerNorm weights")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="learning rate schedule"
    )
    num_warmup_steps: int = Field(0, ge=0, le=MOST_STEPS, description="optimizer steps of linear warm-up")
    eval_steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="steps between evaluations; a tenth of the run when not set"
    )

    @property
    def interval(self) -> int:
        """Return the steps between evaluations."""
        return self.eval_steps or -(-self.max_train_steps // 10)


class RaceSection(Section):
    recipe: Literal["pretrain_mlm", "pretrain_causal_lm", "pretrain_seq2seq"] = Field(
        description="what is learnt: masked LM, causal LM or span corruption"
    )
    data: DataSection = Field(description="the text of both sides; max_length is the length of the rows")
    tokenizer: TokenizerSection = Field(description="the tokenizer of both sides")
    stock: StockRecipe
    stock_variants: dict[str, dict[str, Any]] = Field(
        {}, description="name -> settings of stock that differ, such as {learning_rate: 1e-3}; they race to the target"
    )
    ours: dict[str, Any] = Field(
        description="our recipe: its model, objective, optim and training, with max_train_steps and eval_steps"
    )
    candidates: dict[str, dict[str, Any]] = Field(
        {}, description="name -> settings of ours that differ, such as {optim.learning_rate: 2e-3}"
    )
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        [0, 1, 2], min_length=1, description="one run of each side and candidate for each seed"
    )
    validation_rows: int = Field(256, ge=1, le=MOST_ROWS, description="rows of the validation text to score")
    at_least: float | None = Field(
        None, gt=0, le=1e6, description="aim: ours should be this many times as fast to the loss of stock"
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds):
        if len(set(seeds)) < len(seeds):
            raise ValueError("race.seeds: a value appears twice; remove one")
        return seeds

    @model_validator(mode="after")
    def _names(self):
        names = [OURS, STOCK, *self.candidates, *self.stock_variants]
        for name in (*self.candidates, *self.stock_variants):
            if names.count(name) > 1 or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"race: {name} cannot be the name of a candidate; give each its own, of letters, digits, - and _"
                )
        if "train" not in (self.data.files or {"train": ""}) or self.data.streaming:
            raise ValueError("race.data: a race needs data.files.train, and no stream")
        if self.stock.model.name_or_path is not None:
            raise ValueError("race.stock.model: both sides begin with random weights; give model.config")
        return self

    @property
    def names(self) -> list[str]:
        """The names of all that races, in the order of the table."""
        return [STOCK, *self.stock_variants, OURS, *self.candidates]

    def is_stock(self, name: str) -> bool:
        return name == STOCK or name in self.stock_variants

    def place(self, name: str) -> str:
        """Return where the settings of a name are, for messages."""
        if name in (STOCK, OURS):
            return f"race.{name}"
        return f"race.{'stock_variants' if self.is_stock(name) else 'candidates'}.{name}"

    def planned_steps(self, name: str, seed: int = 0) -> int:
        """Return the steps after which a run ends without the target."""
        if self.is_stock(name):
            return self.stock_recipe(name).max_train_steps
        return self.our_recipe(name, seed, "runs").training.max_train_steps or 0

    def stock_recipe(self, name: str) -> StockRecipe:
        """Return the settings of stock or of a variant. Raises UserError for a mistake in them."""
        where = self.place(name)
        settings: dict[str, Any] = self.stock.model_dump()
        for key, value in _flat(self.stock_variants.get(name, {})).items():
            put(settings, key.split("."), value, f"{where}.{key}")
        return _checked(StockRecipe, settings, where)

    def our_recipe(self, name: str, seed: int, output: str) -> Pretraining:
        """Return the settings of ours or of a candidate, as its recipe reads them. Raises UserError for a mistake."""
        where = self.place(name)
        ours, changes = _flat(self.ours), _flat(self.candidates.get(name, {}))
        for key in (*ours, *changes):
            top = key if key.startswith("data.") else key.partition(".")[0]
            if top not in MAY_CHANGE:
                near = did_you_mean(key, MAY_CHANGE) or f"; {', '.join(MAY_CHANGE)} may"
                raise UserError(f"{where}.{key}: may not differ from the stock recipe{near}")
        settings: dict[str, Any] = {"data": self.data.model_dump(exclude_unset=True)}
        settings |= {"tokenizer": self.tokenizer.model_dump(exclude_unset=True), "output": output, "seed": seed}
        settings["tracking"] = {"trackers": []}
        for key, value in ours.items():
            put(settings, key.split("."), value, f"race.ours.{key}")
        for key, value in changes.items():
            put(settings, key.split("."), value, f"{where}.{key}")
        displace(settings, sorted(changes))
        training = settings.setdefault("training", {})
        for key, why in DECIDED.items():
            if isinstance(training, dict) and training.get(key) is not None:
                raise UserError(f"{where}.training.{key}: {why}; remove it")
        if not isinstance(training, dict) or not {"max_train_steps", "eval_steps"} <= training.keys():
            raise UserError(f"{where}.training: give max_train_steps and eval_steps")
        training["eval_strategy"] = "steps"
        found = _checked(RECIPES[self.recipe], settings, where)
        if found.model.name_or_path is not None:
            raise UserError(f"{where}.model: both sides begin with random weights; give model.config")
        if found.training.average_last and found.training.save_steps != found.training.eval_steps:
            raise UserError(f"{where}.training.average_last: in a race, save_steps must be eval_steps")
        return found


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{optim: {name: x}}` as `{optim.name: x}`, at any depth."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, dict) and value
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _checked(cls: type[Section], settings: dict[str, Any], where: str) -> Any:
    try:
        return cls.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(cls, error, where, set())) from None


class ProfileSection(Section):
    arms: list[Literal["stock fp32", "stock bf16", "tuned", "ours", "ours fp32"]] = Field(
        ["ours", "ours fp32"], min_length=1, description="whose step to look into; ours is in bf16"
    )
    steps: int = Field(3, ge=1, le=1000, description="steps to time, and as many to profile")
