"""Measure a language model on texts and on minimal pairs, over all processes of a run."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForPreTraining

from decero.config.language_scores import EvaluateMaskedLM, EvaluateMinimalPairs, PseudoLikelihoodSection, UnigramText
from decero.config.sections import ModelSection
from decero.data.bias_sets import words_of
from decero.data.corpus import load_corpus
from decero.data.likelihood_rows import CausalRows, DetectorRows, LikelihoodRows, MaskedRows, ScoredPassage
from decero.errors import UserError
from decero.evaluation.pair_accuracy import UnigramModel, contrast_of, preferences
from decero.evaluation.text_metrics import likelihood_figures
from decero.execution.build import config_of
from decero.execution.pretraining_objective import HYBRID, is_discriminator, objective_of
from decero.execution.token_scores import check_causal
from decero.execution.transformers_internals import heads_of
from decero.inference.loading import choose_head
from decero.inference.text_scores import passage_scores
from decero.training.evaluation import late_bar
from decero.training.runs import Run, main_first
from decero.training.sharding import evaluating


def shared_scores(
    accelerator: Accelerator, model: nn.Module, rows: LikelihoodRows, passages: Sequence[ScoredPassage], batch_size: int
) -> list[np.ndarray]:
    """Return `passage_scores` on every process; each computes a share of the distinct passages, longest first."""
    distinct = sorted(dict.fromkeys(passages), key=lambda passage: -len(passage.ids))
    own = distinct[accelerator.process_index :: accelerator.num_processes]

    def batches(lengths: list[int]) -> Iterable[list[int]]:
        begins = late_bar(accelerator, iterable=range(0, len(lengths), batch_size), desc="score", unit="batch")
        return (list(range(begin, min(begin + batch_size, len(lengths)))) for begin in begins)

    with evaluating(accelerator, model) as bare:
        found = passage_scores(bare, rows, own, batches)
    of_passage = dict(gather_object(list(zip(own, found, strict=True))))
    return [of_passage[passage] for passage in passages]


def masked_text_likelihood(
    accelerator: Accelerator, model: nn.Module, rows: LikelihoodRows, texts: Sequence[str], max_length: int,
    batch_size: int, where: str = "data",
) -> tuple[dict[str, float], dict[str, int | None]]:  # fmt: skip
    """Return the metric, and the facts `bytes` and `tokens`. Every token is scored once, within its row.

    The metric has `loss` (nats a token) and `likelihood_figures`: pseudo ones, but for the method sentence_l2r.

    Raises UserError when there is no text.
    """
    read = rows.cut(texts, max_length)
    scores = shared_scores(
        accelerator, model, rows, [passage for text in read for passage in text.passages], batch_size
    )
    nats, tokens = -math.fsum(value for each in scores for value in each), sum(text.tokens for text in read)
    if not tokens:
        raise UserError(f"{where}: no text is left after tokenization; is the column the text?")
    sizes = [text.size for text in read]
    size = None if None in sizes else sum(size for size in sizes if size is not None)
    figures = likelihood_figures(nats, tokens, size, rows.kind.startswith("pseudo"))
    return {"loss": nats / tokens} | figures, {"bytes": size, "tokens": tokens}


def read_texts(run: Run, config: EvaluateMaskedLM) -> list[str]:
    """Return the texts of the split that is measured. Raises UserError for a split that is not there."""
    with main_first(run.accelerator):
        corpus = load_corpus(**config.data.source(), needs_train=False)
    if config.split not in corpus:
        raise UserError(f"split: the corpus has no {config.split}, only {', '.join(corpus)}; name its files")
    return [text or "" for text in corpus[config.split][config.data.text_column]]


def language_head(section: ModelSection, masked: bool = False) -> Any:
    """Return AutoModelForMaskedLM or AutoModelForCausalLM: the head of a checkpoint, or what a preset is made for.

    AutoModelForPreTraining for a discriminator. masked: of a hybrid checkpoint, which has both, take the first.

    Raises UserError for a model that has none of them.
    """
    config, source = config_of(section), str(section.config or section.name_or_path)
    if section.config is None and is_discriminator(config.architectures):
        return AutoModelForPreTraining
    if section.config is None:
        command = "fill" if masked and objective_of(config) == HYBRID else "score"
        return choose_head(source, config, config.architectures or [], command)
    if not config.is_encoder_decoder:
        for auto_class in (AutoModelForMaskedLM, AutoModelForCausalLM):
            if heads_of(auto_class, type(config)):
                return auto_class
    raise UserError(f"model: {source}: {config.model_type} has no masked or causal head; choose another preset")


def read_pairs(run: Run, config: EvaluateMinimalPairs) -> pd.DataFrame:
    """Return the pairs: good, bad, paradigm, phenomenon; "" where there is no such column.

    Raises UserError for a missing column, a split that is not there, and an empty text.
    """
    data = config.data
    with main_first(run.accelerator):
        corpus = load_corpus(**data.source(), needs_train=False)
    if config.split not in corpus:
        raise UserError(f"split: the data have no {config.split}, only {', '.join(corpus)}; name its files")
    rows = corpus[config.split]
    table = pd.DataFrame({name: rows[getattr(data, f"{name}_column")][:] for name in ("good", "bad")})
    for name in ("paradigm", "phenomenon"):
        column = getattr(data, f"{name}_column")
        table[name] = [str(value) for value in rows[column]] if column else ""
    for name in ("good", "bad"):
        for number, text in enumerate(table[name], start=1):
            if not isinstance(text, str) or not text.strip():
                column = getattr(data, f"{name}_column")
                raise UserError(f"{config.split}: row {number}: column {column!r} is empty; fill or drop the row")
    return table if data.max_pairs is None else table.groupby("paradigm", sort=False).head(data.max_pairs)


def score_pairs(
    accelerator: Accelerator, model: nn.Module, rows: LikelihoodRows, table: pd.DataFrame, limit: int | None,
    batch_size: int, where: str = "data",
) -> pd.DataFrame:  # fmt: skip
    """Add to the pairs `good_score` and `bad_score`, sums of ln p, and `good_tokens` and `bad_tokens`.

    limit: tokens that the model reads at once. Raises UserError for a longer text, one without tokens, and a causal
    model that reads ahead.
    """
    if rows.causal:
        with evaluating(accelerator, model) as bare:
            check_causal(bare, "model")
    read = {}
    for side in ("good", "bad"):
        read[side] = rows.cut(table[side].tolist(), limit)
        for number, text in zip(table.index, read[side], strict=True):
            if len(text.passages) != 1:
                long = f"{text.tokens} tokens, more than the {limit} of the model with special tokens; shorten it"
                what = long if text.passages else "no tokens; drop the row"
                raise UserError(f"{where}: row {number + 1}: the {side} text has {what}")
    passages = [text.passages[0] for side in read.values() for text in side]
    totals = [math.fsum(values) for values in shared_scores(accelerator, model, rows, passages, batch_size)]
    scored = table.copy()
    scored["good_score"], scored["bad_score"] = totals[: len(table)], totals[len(table) :]
    for side, texts in read.items():
        scored[f"{side}_tokens"] = [text.tokens for text in texts]
    return scored


def pair_systems(
    table: pd.DataFrame, unigram: UnigramModel | None, controls: Sequence[pd.DataFrame] = ()
) -> dict[str, np.ndarray]:
    """Return system -> `preferences`: model, model per token, random weights, word counts, the shorter text.

    The last one shows what a sum of log-probabilities prefers by length alone; random weights come near it.
    controls: from `score_pairs`, of models with random weights; theirs are (models, pairs).
    """
    good, bad = table["good_score"], table["bad_score"]
    found = {
        "accuracy": preferences(good, bad),
        "accuracy_per_token": preferences(good / table["good_tokens"], bad / table["bad_tokens"]),
    }
    if controls:
        found["random_weights"] = np.stack([preferences(each["good_score"], each["bad_score"]) for each in controls])
    if unigram is not None:
        sides = ([unigram(words_of(text)) for text in table[side]] for side in ("good", "bad"))
        found["unigram"] = preferences(*sides)
    return found | {"fewer_tokens": preferences(-table["good_tokens"], -table["bad_tokens"])}


def pair_contrasts(table: pd.DataFrame) -> list[Hashable]:
    """Return what distinguishes the texts of each pair, see `contrast_of`."""
    return [contrast_of(words_of(good), words_of(bad)) for good, bad in zip(table["good"], table["bad"], strict=True)]


def read_unigram(run: Run, source: UnigramText) -> UnigramModel:
    """Count the words of a training text. Raises UserError when it has no train split, or no words."""
    with main_first(run.accelerator):
        texts = load_corpus(**source.source())["train"][source.text_column]
    model = UnigramModel(words_of(text or "") for text in texts)
    if not model.counts:
        raise UserError(
            f"unigram: column {source.text_column!r} has no words; give a text in the language of the model"
        )
    return model


def pair_rows(config: EvaluateMinimalPairs, head: Any, tokenizer: Any) -> LikelihoodRows:
    """Return how texts are scored with this head. Raises UserError for a setting of the other kind of model."""
    causal = head is AutoModelForCausalLM
    if causal and config.objective is not None:
        raise UserError("objective: a causal model has its likelihood, without masks; remove it")
    if not causal and config.start_token is not None:
        raise UserError("start_token: a masked model has no start token; remove it")
    if head is AutoModelForPreTraining:
        if config.objective is not None:
            raise UserError("objective: a discriminator reads the text as it is, without masks; remove it")
        return DetectorRows(tokenizer)
    if causal:
        return CausalRows(tokenizer, config.start_token)
    return MaskedRows(tokenizer, (config.objective or PseudoLikelihoodSection()).name)
