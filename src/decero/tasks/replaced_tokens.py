"""Replaced token detection for encoders (ELECTRA: Clark et al. 2020)."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel

from decero.config.pretraining import PretrainRTD
from decero.config.sections import ModelSection, TokenizerSection
from decero.data.collators import ReplacedTokens
from decero.data.tokenizer import tokenizer_fingerprint
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics
from decero.execution.build import build_model, config_of, tokenizer_for
from decero.execution.objective import Objective
from decero.execution.pretrained import say
from decero.execution.pretraining_objective import mark_objective
from decero.execution.token_detection import (
    DetectedRow,
    GeneratorAndDiscriminator,
    detect,
    embeddings_of,
    generator_config,
    token_detection,
)
from decero.execution.transformers_internals import attention_of, heads_of
from decero.execution.unwrap import unwrap
from decero.tasks.base import Scores, TaskData
from decero.tasks.scored_tokens import ScoredTokens
from decero.training.evaluation import predict_rows
from decero.training.runs import Run

GENERATOR = "generator"  # the folder beside model/


class ReplacedTokenDetection(ScoredTokens):
    recipe, Config, auto_class = "pretrain_rtd", PretrainRTD, AutoModelForPreTraining
    tokenizer_needs = ("mask_token", "pad_token")
    most_epochs = 40  # as for masked language modelling: masks and replacements are new each time
    metrics = token_metrics = ("detection_loss", "detection_accuracy")

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        """The discriminator and its generator.

        Raises UserError for a model without a discriminator, or without embeddings that a narrower one can share, and
        for a generator that does not fit it.
        """
        source = str(section.config or section.name_or_path)
        config = config_of(section)
        why = (
            f"model: {source}: {config.model_type} has no discriminator and generator that can share their embeddings; "
        )
        why += "use a decero_encoder, such as configs/model/modern_encoder_tiny.yaml, or an electra"
        heads = (heads_of(auto, type(config)) for auto in (AutoModelForPreTraining, AutoModelForMaskedLM))
        if not all(heads) or not hasattr(config, "embedding_size"):
            raise UserError(why)
        discriminator = super().initial_model(section)
        if not hasattr(discriminator, "discriminator_predictions"):
            raise UserError(why)
        return GeneratorAndDiscriminator(self._generator(section, discriminator), discriminator)

    def _generator(self, section: ModelSection, discriminator: Any) -> Any:
        """The generator of the settings, that of an earlier run, or a new one."""
        settings = self.config.objective
        beside = Path(section.name_or_path or "").parent / GENERATOR if section.name_or_path else None
        found = settings.generator or (str(beside) if beside and (beside / "config.json").is_file() else None)
        if found is None and self.config.eval_only:
            raise UserError(f"objective.generator: {section.name_or_path} is scored with its generator; set its folder")
        if found is None:
            if section.name_or_path:
                say(f"no generator beside {section.name_or_path}: a new one with random weights")
            made = generator_config(discriminator.config, settings.generator_size)
            kernel = {"attn_implementation": attention_of(discriminator)}
            return AutoModelForMaskedLM.from_config(made, **kernel)
        where = "objective.generator" if settings.generator else "model.name_or_path"
        chosen = ModelSection(name_or_path=found, attn_implementation=section.attn_implementation)
        if (kind := config_of(chosen).model_type) != discriminator.config.model_type:
            raise UserError(
                f"{where}: {found} is a {kind}, but the discriminator is a {discriminator.config.model_type}"
            )
        own = tokenizer_for(TokenizerSection(), chosen, needs=self.tokenizer_needs)
        if tokenizer_fingerprint(own) != tokenizer_fingerprint(self.tokenizer):
            raise UserError(
                f"{where}: the generator {found} has another tokenizer than this run; choose another generator"
            )
        generator = build_model(
            chosen, AutoModelForMaskedLM, self.tokenizer, self.max_length, self.config.seed,
            new_head=not self.config.eval_only,
        )  # fmt: skip
        width = generator_config(discriminator.config, settings.generator_size).hidden_size
        if generator.config.hidden_size != width:
            say(f"objective.generator_size has no effect: {found} has a width of {generator.config.hidden_size}")
        wanted = embeddings_of(discriminator)
        if not all(p.equal(wanted[name]) for name, p in embeddings_of(generator).items() if name in wanted):
            say(f"{found}: its embeddings are replaced by those of the discriminator")
        return generator

    def kept(self, model: Any) -> PreTrainedModel:
        return model.discriminator

    def _objective(self, frozen: bool) -> Objective:
        settings = self.config.objective
        collate = ReplacedTokens(
            self.tokenizer, settings.mlm_probability, settings.whole_word, seed=self.config.seed, frozen=frozen
        )
        return token_detection(collate, settings.discriminator_weight)

    def objective(self, model: nn.Module) -> Objective:
        return self._objective(frozen=False)

    def reported_objective(self, model: nn.Module) -> Objective:
        return self._objective(frozen=True)

    def _detected(self, run: Run, model: nn.Module, rows: Dataset) -> list[DetectedRow]:
        def read_out(bare: nn.Module, batch: Any, indices: list[int]) -> list[DetectedRow]:
            return list(bare(detect, batch))

        size = run.training.per_device_eval_batch_size
        return predict_rows(run.accelerator, model, rows, self.reported_objective(model), size, read_out)

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """Return `loss`, that of training as the mean over all tokens, and what each model reaches.

        Of the discriminator loss, accuracy and f1 (of replaced tokens); of the generator loss and accuracy.
        """
        found = self._detected(run, model, rows)
        return self._figures(found, detection_table(found))

    def _figures(self, found: list[DetectedRow], table: pd.DataFrame) -> dict[str, float]:
        holes = max(1, sum(row.holes for row in found))
        generator_loss = sum(row.nats for row in found) / holes
        detection_loss = -float(table["log_probability"].mean())
        said, true = table["prediction"] == 1, table["label"] == 1
        return {
            "loss": generator_loss + self.config.objective.discriminator_weight * detection_loss,
            "detection_loss": detection_loss,
            "detection_accuracy": float((said == true).mean()),
            "detection_f1": 2 * float((said & true).sum()) / max(1.0, float(said.sum() + true.sum())),
            "generator_loss": generator_loss,
            "generator_accuracy": sum(row.right for row in found) / holes,
        }

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        """Scores of the validation tokens. predictions.parquet: label 1 for a replaced token."""
        if data.validation is None:
            return Scores({}, {})
        found = self._detected(run, model, data.validation)
        table = detection_table(found)
        if run.is_main:
            table.to_parquet(run.output / "predictions.parquet")
        figures = self._figures(found, table)
        return Scores({"eval_loss": figures.pop("loss")} | figures, {"scored_rows": len(data.validation)})

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        return super().example_statistics(folder, metric.replace("detection", "eval"))

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._detected(run, model, rows)

    def prepare_to_save(self, model: Any) -> None:
        for part in (model.generator, model.discriminator):
            mark_objective(part.config, None)

    def save(self, run: Run, model: Any) -> None:
        """Write generator/ and then model/, the discriminator."""
        pair = unwrap(model)
        run.save_model(pair.generator, self.tokenizer, name=GENERATOR)
        run.save_model(pair.discriminator, self.tokenizer)

    def usage(self, folder: Path) -> list[str]:
        return [f"decero fill {folder.parent / GENERATOR} FILE"]


def detection_table(found: list[DetectedRow]) -> pd.DataFrame:
    """Return a line for each token: row, position, label (1: replaced), prediction, log_probability of the label."""
    sizes = [len(row.logits) for row in found]
    logits_N = np.concatenate([np.empty(0), *(row.logits.double().numpy() for row in found)])
    label_N = np.concatenate([np.empty(0, dtype=bool), *(row.replaced.numpy() for row in found)])
    columns = {
        "row": np.repeat(np.arange(len(found)), sizes),
        "position": np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(size) for size in sizes)]),
        "label": label_N.astype(np.int64),
        "prediction": (logits_N > 0).astype(np.int64),
        "log_probability": -np.logaddexp(0, np.where(label_N, -logits_N, logits_N)),
    }
    return pd.DataFrame(columns)
