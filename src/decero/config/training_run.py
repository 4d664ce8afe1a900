"""Define the settings that all training recipes share, and those of fine-tuning."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from decero.config.run_config import RunConfig
from decero.config.sections import ModelSection, OptimSection, Section, TokenizerSection, TrainingSection
from decero.errors import UserError


def check_eval_only(config: Any) -> None:
    """Raise UserError where `--eval-only` has no model to score, or one to push."""
    if config.eval_only and config.model.name_or_path is None:
        raise UserError("--eval-only scores a trained model; set model.name_or_path=FOLDER")
    if config.eval_only and config.hub.repo_id:
        raise UserError("--eval-only makes no model to push; remove hub.repo_id")


class TrainingRun(RunConfig):
    options = (*RunConfig.options, "--device", "--eval-only")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection

    def check_options(self) -> None:
        check_eval_only(self)


class PeftSection(Section):
    method: Literal["lora"] = Field("lora", description="kind of adapter: LoRA (Hu et al. 2021)")
    r: int = Field(8, ge=1, le=4096, description="rank of the update of each adapted matrix")
    alpha: float = Field(16.0, gt=0, le=1e6, description="the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the adapters")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="names of the layers to adapt, e.g. [q_proj, v_proj]; all-linear: all but the head"
    )


class FineTuning(TrainingRun):
    peft: PeftSection | None = Field(
        None, description="train a small adapter and the new head, and keep all other weights; needs decero[peft]"
    )

    @model_validator(mode="after")
    def _adapts_a_checkpoint(self):
        if self.peft is not None and self.model.name_or_path is None:
            raise ValueError("peft adapts a checkpoint, and model.config has random weights; set model.name_or_path")
        return self

    @model_validator(mode="after")
    def _others_have_the_base(self):
        name = self.model.name_or_path or ""
        if self.peft and self.hub.repo_id and (name.startswith("package:") or Path(name).is_dir()):
            raise ValueError(
                f"hub.repo_id: an adapter for {name} is of no use to others, who do not have that model; remove it, "
                "and push what decero merge writes"
            )
        return self
