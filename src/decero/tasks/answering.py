"""Answers of a model to the rows of a task, and the generation settings with which it writes and is saved."""

import copy
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from decero.config.finetuning import GenerationSection
from decero.errors import UserError
from decero.execution.positions import positions_of
from decero.inference.decode import TOKENS_PER_BATCH, decode
from decero.inference.decoding_plan import check_beams
from decero.training.sharding import unsharded

# Settings of sampling, which transformers refuses to save in a config that does not sample
DRAWS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_answering(
    model: PreTrainedModel, generation: GenerationSection, source: int, tries: list[list[int]], start: dict[str, Any]
) -> None:
    """Raise UserError if the model cannot write and be saved as `generation` says, which happens after training.

    source: tokens of the longest source. tries: sources to answer with two tokens, which finds what a model or its
    generation_config cannot do. start: fields of generation_config to change.
    """
    positions, own = positions_of(model, decoder=True), model.generation_config
    most = generation.max_new_tokens
    if positions and most > positions and "max_new_tokens" in generation.model_fields_set:
        raise UserError(
            f"generation.max_new_tokens {most} exceeds the {positions} positions of the model; lower it to {positions}"
        )
    least = max(own.min_new_tokens or 0, (own.min_length or 0) - 1 if model.config.is_encoder_decoder else 0)
    if least > most:
        raise UserError(
            f"generation.max_new_tokens {most} is less than the {least} tokens that an answer must have by the model's "
            f"generation_config; raise it to {least} or more"
        )
    if problem := check_beams(model, generation.num_beams, source, most):
        raise UserError(f"generation.num_beams: {problem}; lower it")
    beams = {"num_beams": generation.num_beams, "length_penalty": generation.length_penalty}
    decode(model, tries, max_new_tokens=2, settings=start, **beams)  # type: ignore[arg-type]
    written_config(model, generation)


def written_config(model: PreTrainedModel, generation: GenerationSection) -> GenerationConfig:
    """Return the generation config to save: stock transformers then writes as the final evaluation does.

    Settings that have no effect with it are removed, because transformers refuses to save them. Raises UserError if
    others remain.
    """
    config, positions = copy.deepcopy(model.generation_config), positions_of(model, decoder=True)
    config.num_beams, config.length_penalty = generation.num_beams, generation.length_penalty
    config.max_new_tokens = min(generation.max_new_tokens, positions or generation.max_new_tokens)
    config.max_length = config.num_return_sequences = None
    if generation.num_beams == 1:
        config.early_stopping = None
    if config.pad_token_id is not None and config.pad_token_id < 0:
        config.pad_token_id = None
    if not config.do_sample:
        for name in DRAWS:
            setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise UserError(f"the model's generation_config cannot be saved: {' '.join(str(error).split())}") from error
    return config


def answers(
    accelerator: Accelerator, model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset,
    generation: GenerationSection, *, num_beams: int = 1, settings: dict[str, Any] | None = None,
    progress: str | None = None,
) -> list[str]:  # fmt: skip
    """What the model writes for every row, in order and the same on every process. progress: names a bar.

    settings: fields of generation_config to change.

    Each process writes its part, one token more or less than the others, so a sharded model is made whole for it.
    """
    mine = list(range(accelerator.process_index, len(rows), accelerator.num_processes))
    sources = [rows[index]["input_ids"] for index in mine]
    shown = progress is not None and accelerator.is_main_process
    bar = tqdm(total=len(mine), desc=progress, unit="text", dynamic_ncols=True, disable=not shown)
    with bar, unsharded(accelerator, model) as bare:
        ids = decode(
            bare, sources, max_new_tokens=generation.max_new_tokens, num_beams=num_beams,
            tokens_per_batch=TOKENS_PER_BATCH, length_penalty=generation.length_penalty if num_beams > 1 else None,
            settings=settings, progress=bar.update,
        )  # fmt: skip
    written = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    every = dict(gather_object(list(zip(mine, written, strict=True))))
    return [every[index] for index in range(len(rows))]
