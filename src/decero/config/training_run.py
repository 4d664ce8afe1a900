"""Define the settings that all training recipes share."""

from decero.config.run_config import RunConfig
from decero.config.sections import ModelSection, OptimSection, TokenizerSection, TrainingSection


class TrainingRun(RunConfig):
    options = (*RunConfig.options, "--device")

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection
