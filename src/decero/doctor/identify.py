"""Which task a configuration file is for."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from decero.config.run_config import RunConfig
from decero.config.sections import ModelSection
from decero.config.yaml_files import read_yaml
from decero.data.packages import resolve_package_path
from decero.errors import UserError, did_you_mean
from decero.execution.build import read_preset
from decero.execution.transformers_internals import StrictDataclassError, heads_of
from decero.tasks import TASKS


def recipe_of(path: Path, asked: str | None = None) -> str:
    """Which recipe a configuration is for.

    The one that was asked for; else the one whose command stands in the file's comments, as in every file of configs/;
    else the only one whose settings take it, as they do a run's own config.yaml; and where several do, the one that
    trains the shape of the model (encoder, decoder, both) if there is but one.

    Raises UserError when that leaves none or several.
    """
    if asked:
        if asked not in TASKS:
            near = did_you_mean(asked, TASKS) or f"; there are {', '.join(TASKS)}"
            raise UserError(f"--recipe: {asked} is no recipe that trains{near}")
        return asked
    settings = read_yaml(path)
    comments = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    named = set(re.findall(r"recipes/(\w+)\.py", comments)) & set(TASKS)
    if len(named) == 1:
        return named.pop()
    mistakes = {name: _mistakes(task.Config, settings) for name, task in TASKS.items()}
    fits = [name for name, count in mistakes.items() if not count]
    if not fits:
        nearest = min(mistakes, key=lambda name: mistakes[name])
        TASKS[nearest].Config.parse(settings, f"{path} (as {nearest})")  # raises, and says what it is
    if len(fits) > 1:
        kind = _kind(TASKS[fits[0]].Config.parse(settings, str(path)).model)  # type: ignore[attr-defined]
        also = AutoModelForSequenceClassification if kind is AutoModelForMaskedLM else kind  # encoders do either
        fits = [name for name in fits if TASKS[name].auto_class in (kind, also)]
    if len(fits) != 1:
        raise UserError(
            f"{path}: may be for {' or '.join(fits) or 'none of the recipes'}; say which with --recipe NAME"
        )
    return fits[0]


def _mistakes(schema: type[RunConfig], settings: dict[str, Any]) -> int:
    try:
        schema.model_validate(settings)
    except ValidationError as error:
        return error.error_count()
    return 0


def _kind(section: ModelSection) -> Any:
    """The auto class that a model is pretrained as. Raises UserError for one whose configuration cannot be read."""
    try:
        if section.config is not None:
            config = read_preset(section.config, section.overrides)
        else:
            hub = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
            config = AutoConfig.from_pretrained(resolve_package_path(str(section.name_or_path)), **hub)
    except (StrictDataclassError, OSError, ValueError, KeyError) as error:
        raise UserError(f"model: {section.config or section.name_or_path}: {' '.join(str(error).split())}") from error
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    return AutoModelForMaskedLM if heads_of(AutoModelForMaskedLM, type(config)) else AutoModelForCausalLM
