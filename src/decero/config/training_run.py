"""Define the settings that all training recipes share."""

from decero.config.run_config import RunConfig
from decero.config.sections import ModelSection, OptimSection, TokenizerSection, TrainingSection
from decero.errors import UserError


class TrainingRun(RunConfig):
    options = (*RunConfig.options, "--device", "--eval-only")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection

    def check_options(self) -> None:
        if self.eval_only and self.model.name_or_path is None:
            raise UserError("--eval-only scores a trained model; set model.name_or_path=FOLDER")
        if self.eval_only and self.hub.repo_id:
            raise UserError("--eval-only makes no model to push; remove hub.repo_id")
