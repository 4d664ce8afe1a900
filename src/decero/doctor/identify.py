"""Find out which recipe a configuration file is for."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from decero.config.benchmark import Benchmark
from decero.config.bias import ProbeBias
from decero.config.drawings import EvaluateDrawings
from decero.config.image_token_runs import EvaluateImageTokens, TokenizeImages
from decero.config.language_scores import EvaluateMaskedLM, EvaluateMinimalPairs
from decero.config.long_range import LongRange
from decero.config.pretraining import EvaluateCausalLM, TrainTokenizer
from decero.config.run_config import RunConfig, read_changed
from decero.config.sections import ModelSection
from decero.config.suite import EvaluateSuite
from decero.config.yaml_files import read_settings
from decero.doctor.findings import NotExaminedError
from decero.errors import UserError, did_you_mean
from decero.execution.build import config_of
from decero.execution.transformers_internals import fills_holes, heads_of
from decero.tasks import TASKS

NOT_EXAMINED: dict[str, type[RunConfig]] = {  # recipes that train no model, or many
    "train_tokenizer": TrainTokenizer, "evaluate_causal_lm": EvaluateCausalLM, "evaluate_masked_lm": EvaluateMaskedLM,
    "evaluate_minimal_pairs": EvaluateMinimalPairs, "probe_bias": ProbeBias, "evaluate_drawings": EvaluateDrawings,
    "evaluate_image_tokens": EvaluateImageTokens, "tokenize_images": TokenizeImages, "evaluate_suite": EvaluateSuite,
    "benchmark": Benchmark, "long_range": LongRange,
}  # fmt: skip

DRAWS = "decero_diffusion"
OF_PICTURES = tuple(
    task.auto_class for task in TASKS.values() if not task.tokenizer_needs and task.auto_class is not AutoModel
)


def recipe_of(path: Path, requested: str | None = None, changes: Sequence[str] = ()) -> str:
    """Return the name of the recipe that a configuration is for.

    The first rule that gives one recipe decides:
    1. `requested`, if given.
    2. The recipe whose command is in the comments of the file, as in all files of configs/.
    3. The only recipe whose schema accepts the settings, as for config.yaml of a run.
    4. Of these, the one that trains this kind of model (encoder, decoder, encoder-decoder).

    changes: `key.sub=value` words. Raises UserError if no recipe or several recipes are left, and NotExaminedError for
    the settings of another recipe.
    """
    if requested:
        if requested not in TASKS:
            near = did_you_mean(requested, TASKS) or f"; known: {', '.join(TASKS)}"
            raise NotExaminedError(f"--recipe: unknown training recipe {requested}{near}")
        return requested
    settings, changed, _ = read_changed(str(path), changes)
    comments = "\n".join(line for line in read_settings(path).splitlines() if line.startswith("#"))
    commands = set(re.findall(r"recipes/(\w+)\.py", comments))
    if len(named := commands & set(TASKS)) == 1:
        return named.pop()
    mistakes = {name: _mistakes(task.Config, settings) for name, task in TASKS.items()}
    fits = [name for name, count in mistakes.items() if not count]
    if not fits:
        for name, schema in NOT_EXAMINED.items():
            if name in commands or not _mistakes(schema, settings):
                raise NotExaminedError(f"{path}: this is for recipes/{name}.py; the doctor examines trainings")
        nearest = min(mistakes, key=lambda name: mistakes[name])
        TASKS[nearest].Config.parse(settings, f"{path} (as {nearest})", changed)  # raises UserError with the mistake
    if len(fits) > 1:
        kinds = _kinds(TASKS[fits[0]].Config.parse(settings, str(path)).model)  # type: ignore[attr-defined]
        fits = [name for name in fits if TASKS[name].auto_class in kinds] or fits
    if len(fits) != 1:
        raise UserError(f"{path}: fits {', '.join(fits)}; choose one with --recipe NAME")
    return fits[0]


def _mistakes(schema: type[RunConfig], settings: dict[str, Any]) -> int:
    try:
        schema.model_validate(settings)
    except ValidationError as error:
        return error.error_count()
    return 0


def _kinds(section: ModelSection) -> tuple[Any, ...]:
    """Return the auto classes that a model is trained with: for texts those of pretraining, for pictures all heads.

    Raises UserError if the configuration of the model cannot be read.
    """
    config = config_of(section)
    if config.model_type == DRAWS:
        return (AutoModel,)
    if found := tuple(auto for auto in OF_PICTURES if heads_of(auto, type(config))):
        return found
    if config.is_encoder_decoder:
        return (AutoModelForSeq2SeqLM,)
    if fills_holes(type(config)):  # encoders are also trained as classifiers
        return AutoModelForMaskedLM, AutoModelForSequenceClassification
    return (AutoModelForCausalLM,)
