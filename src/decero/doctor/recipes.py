"""The recipes as the doctor sees them: settings, corpus, rows, objective and kind of model of each, without its main.

The schemas are those of recipes/*.py, which nothing imports and which an installed package does not hold; a test keeps
the two equal, setting by setting.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from decero.config.pretraining import (
    CausalSection,
    DenoisingSection,
    MaskedLMSection,
    Pretraining,
    TextSection,
    UnlabelledData,
)
from decero.config.run_config import RunConfig
from decero.config.sections import ModelSection, OptimSection, TokenizerSection, TrainingSection
from decero.config.yaml_files import read_yaml
from decero.data import causal, completions
from decero.data import corruption as denoising
from decero.data.collators import Classification, MaskedLanguageModeling
from decero.data.corpus import load_corpus, open_corpus
from decero.data.labels import encode_labels, label_budget
from decero.data.packages import resolve_package_path
from decero.data.pairs import Seq2Seq
from decero.data.tokenization import tokenize_documents, tokenize_examples, tokenize_pairs
from decero.errors import UserError, did_you_mean
from decero.execution.build import read_preset
from decero.execution.objective import Objective, classification, language_model, masked_lm
from decero.tasks.classification import FinetuneClassification
from decero.tasks.prompts import CompletionSection, prompt_style
from decero.tasks.text_to_text import GenerationSection, TasksSection, WritingSection, load_tasks, mix, tokenize_tasks


class Trained(RunConfig):
    """What the settings of all six share."""

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection


class PretrainMLM(Trained, Pretraining):
    data: UnlabelledData
    objective: MaskedLMSection = MaskedLMSection()


class PretrainSeq2Seq(Trained, Pretraining):
    data: UnlabelledData
    objective: DenoisingSection = DenoisingSection()


class PretrainCausalLM(Trained, Pretraining):
    data: TextSection
    objective: CausalSection = CausalSection()


class FinetuneSeq2Seq(Trained):
    data: TasksSection
    objective: WritingSection = WritingSection()
    generation: GenerationSection = GenerationSection()


class FinetuneCausalLM(Trained):
    data: TasksSection
    objective: CompletionSection = CompletionSection()
    generation: GenerationSection = GenerationSection()


class Corpus(NamedTuple):
    """splits: split -> task -> rows (one task without a name where there are none). columns: those that hold text."""

    splits: dict[str, dict[str, Dataset]]
    columns: tuple[str, ...]
    label_names: tuple[str, ...] = ()


def _documents(config: Any) -> Corpus:
    """Of a stream, the first texts of its files: as many as the run holds at a time."""
    corpus = open_corpus(**config.data.source())
    if config.data.streaming:
        corpus["train"] = corpus["train"].first(config.data.buffer_size)
    return Corpus({s: {"": d} for s, d in corpus.items()}, (config.data.text_column,))


def _labelled(config: Any) -> Corpus:
    """Train with its encoded labels, the others as they are: a label that train never shows is for a check to say."""
    data, kind = config.data, config.objective.problem_type
    corpus = load_corpus(**data.source())
    encoded, names = encode_labels(DatasetDict(train=corpus["train"]), data.label_column, kind)
    corpus["train"] = label_budget(encoded["train"], data.max_train_rows, kind, config.seed)
    columns = (data.text_column, *([data.text_pair_column] if data.text_pair_column else []))
    return Corpus({s: {"": d} for s, d in corpus.items()}, columns, tuple(names))


def _pairs(config: Any) -> Corpus:
    splits: dict[str, dict[str, Dataset]] = {}
    for name, corpus in load_tasks(config.data, config.seed).items():
        for split, dataset in corpus.items():
            splits.setdefault(split, {})[name] = dataset
    return Corpus(splits, ("source", "target"))


def _text_rows(tokenize: Callable[..., Dataset], config: Any, tokenizer: Any, train: dict[str, Dataset], **how: Any):
    data = config.data
    how = {"max_length": data.max_length, "text_column": data.text_column, "num_proc": data.num_proc} | how
    return tokenize(train[""], tokenizer, where="train", **how)


def _denoising_rows(config: Any, tokenizer: Any, train: dict[str, Dataset]) -> Dataset:
    room = {"max_length": config.data.max_length - 1, "special_tokens": False}
    return _text_rows(tokenize_documents, config, tokenizer, train, **room)


def _causal_rows(config: Any, tokenizer: Any, train: dict[str, Dataset]) -> Dataset:
    return _text_rows(causal.tokenize_text, config, tokenizer, train, start_token=config.data.start_token)


def _labelled_rows(config: Any, tokenizer: Any, train: dict[str, Dataset]) -> Dataset:
    pair = {"text_pair_column": config.data.text_pair_column}
    return _text_rows(tokenize_examples, config, tokenizer, train, **pair)


def _pair_rows(config: Any, tokenizer: Any, train: dict[str, Dataset], tokenize=tokenize_pairs) -> Dataset:
    texts = {name: DatasetDict(train=dataset) for name, dataset in train.items()}
    rows = tokenize_tasks(texts, config.data, tokenizer, config.seed, tokenize)["train"]
    return mix(rows, config.data.tasks, config.seed)


def _prompt_rows(config: Any, tokenizer: Any, train: dict[str, Dataset]) -> Dataset:
    style = prompt_style(config.objective, tokenizer)
    return _pair_rows(config, tokenizer, train, partial(completions.tokenize_prompts, **style))


def _masked(config: Any, tokenizer: Any, _start_id: Any) -> Objective:
    settings = config.objective.model_dump(exclude={"scored_queries"})
    collate = MaskedLanguageModeling(tokenizer, seed=config.seed, **settings)
    return masked_lm(collate, scored_queries=False)  # the same loss, and every layer is seen with every token


def _denoising(config: Any, tokenizer: Any, start_id: int) -> Objective:
    settings = config.objective.model_dump(exclude={"name"}, exclude_none=True)
    settings |= {"max_length": config.data.max_length - 1, "seed": config.seed}
    return language_model(denoising.OBJECTIVES[config.objective.name](tokenizer, start_id, **settings))


@dataclass(frozen=True)
class Recipe:
    """One recipe. The losses of its objective are those that runs report: without label smoothing.

    needs: special tokens of the tokenizer. read: settings -> corpus. rows: (settings, tokenizer, task -> texts) -> the
    rows of train. objective: (settings, tokenizer, id of the decoder's first token) -> its objective.
    """

    schema: type[RunConfig]
    auto_class: Any
    needs: tuple[str, ...]
    read: Callable[[Any], Corpus]
    rows: Callable[[Any, PreTrainedTokenizerFast, dict[str, Dataset]], Dataset]
    objective: Callable[[Any, Any, Any], Objective]


RECIPES = {
    "pretrain_mlm": Recipe(
        PretrainMLM, AutoModelForMaskedLM, ("mask_token", "pad_token"), _documents,
        partial(_text_rows, tokenize_documents),
        _masked,
    ),
    "pretrain_seq2seq": Recipe(
        PretrainSeq2Seq, AutoModelForSeq2SeqLM, ("eos_token", "pad_token"), _documents, _denoising_rows, _denoising,
    ),
    "pretrain_causal_lm": Recipe(
        PretrainCausalLM, AutoModelForCausalLM, ("eos_token",), _documents, _causal_rows,
        lambda c, t, _: language_model(causal.OBJECTIVES[c.objective.name](t, seed=c.seed)),
    ),
    "finetune_classification": Recipe(
        FinetuneClassification, AutoModelForSequenceClassification, ("pad_token",), _labelled, _labelled_rows,
        lambda c, t, _: classification(Classification(t), c.objective.problem_type),
    ),
    "finetune_seq2seq": Recipe(
        FinetuneSeq2Seq, AutoModelForSeq2SeqLM, ("pad_token",), _pairs, _pair_rows,
        lambda c, t, start_id: language_model(Seq2Seq(t, start_id)),
    ),
    "finetune_causal_lm": Recipe(
        FinetuneCausalLM, AutoModelForCausalLM, ("eos_token",), _pairs, _prompt_rows,
        lambda c, t, _: language_model(completions.PromptCompletion(t)),
    ),
}  # fmt: skip


def recipe_of(path: Path, asked: str | None = None) -> str:
    """Which recipe a configuration is for.

    The one that was asked for; else the one whose command stands in the file's comments, as in every file of configs/;
    else the only one whose settings take it, as they do a run's own config.yaml; and where several do, the one that
    trains the shape of the model (encoder, decoder, both) if there is but one.

    Raises UserError when that leaves none or several.
    """
    if asked:
        if asked not in RECIPES:
            near = did_you_mean(asked, RECIPES) or f"; there are {', '.join(RECIPES)}"
            raise UserError(f"--recipe: {asked} is no recipe that trains{near}")
        return asked
    settings = read_yaml(path)
    comments = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    named = set(re.findall(r"recipes/(\w+)\.py", comments)) & set(RECIPES)
    if len(named) == 1:
        return named.pop()
    mistakes = {name: _mistakes(recipe.schema, settings) for name, recipe in RECIPES.items()}
    fits = [name for name, count in mistakes.items() if not count]
    if not fits:
        nearest = min(mistakes, key=lambda name: mistakes[name])
        RECIPES[nearest].schema.parse(settings, f"{path} (as {nearest})")  # raises, and says what it is
    if len(fits) > 1:
        kind = _kind(RECIPES[fits[0]].schema.parse(settings, str(path)).model)  # type: ignore[attr-defined]
        also = AutoModelForSequenceClassification if kind is AutoModelForMaskedLM else kind  # encoders do either
        fits = [name for name in fits if RECIPES[name].auto_class in (kind, also)]
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
    return AutoModelForMaskedLM if type(config) in AutoModelForMaskedLM._model_mapping else AutoModelForCausalLM
