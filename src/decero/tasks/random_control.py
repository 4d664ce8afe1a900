"""Models with random weights: a control that must not prefer any text of a pair."""

from collections.abc import Iterator
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decero.config.language_scores import ControlSection
from decero.config.sections import ModelSection
from decero.data.tokenizer import check_fits_model
from decero.errors import UserError
from decero.execution.attention_kernels import choose_attention
from decero.execution.build import build_model, config_of
from decero.execution.positions import positions_of
from decero.execution.pretrained import one_line
from decero.execution.transformers_internals import heads_of
from decero.training.runs import Run


def random_models(
    run: Run, config: Any, head: Any, tokenizer: PreTrainedTokenizerFast, longest: int = 0
) -> Iterator[PreTrainedModel]:
    """Yield a model a seed, ready to compute: that of `control.model`, or the architecture of the model itself.

    config: settings with `control` and `model`. longest: tokens of the longest text, with special tokens.
    Raises UserError when the control reads fewer.
    """
    for seed in config.control.seeds:
        found = random_model(config.control.model or config.model, head, tokenizer, seed)
        limit = positions_of(found)
        if limit is not None and limit < longest:
            problem = f"it reads {limit} tokens, and a text has {longest} with special tokens"
            raise UserError(f"control.model: {problem}; choose a preset with more positions")
        choose_attention(
            found, run.accelerator.device, run.training.mixed_precision, requested=config.model.attn_implementation
        )
        yield run.accelerator.prepare_model(found, evaluation_mode=True)


def check_control(control: ControlSection, model: ModelSection, head: Any) -> None:
    """Raise UserError when a control has not the head of the model, or its code would have to be run."""
    section, config = control.model or model, config_of(control.model or model)
    source = section.config or section.name_or_path
    if section.trust_remote_code:
        raise UserError(f"control.model: {source} has code of its own; set control.model.config to a preset")
    if not heads_of(head, type(config)):
        kind = head.__name__.removeprefix("AutoModelFor")
        raise UserError(f"control.model: {source}: {config.model_type} has no {kind} head, which the model has")


def random_model(section: ModelSection, head: Any, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """Build a preset, or the architecture of a checkpoint, with weights drawn from `seed`."""
    if section.config is not None:
        return build_model(section, head, tokenizer, 1, seed)
    config = config_of(section)
    transformers.set_seed(seed)
    with one_line(f"model: {section.name_or_path}"):
        found = head.from_config(config)
    check_fits_model(tokenizer, found.get_input_embeddings().num_embeddings, str(section.name_or_path))
    return found
