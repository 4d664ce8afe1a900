"""Multiple choice: an encoder scores each choice with a head, or a decoder by its likelihood, also without training."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import log_softmax
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from decero.config.finetune_choice import FinetuneMultipleChoice
from decero.config.sections import ModelSection
from decero.data.choice_rows import (
    ChoiceCollator,
    EveryContinuation,
    RightContinuation,
    tokenize_choices,
    tokenize_continuations,
)
from decero.data.choices import TEXTS, read_choices
from decero.data.columns import text_hashes
from decero.data.corpus import load_corpus, train_examples
from decero.data.labels import label_budget
from decero.data.special_tokens import pad_with
from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics, mean_statistics
from decero.execution.build import tokenizer_for
from decero.execution.choice_objective import choice, continuation_choice, right_continuation
from decero.execution.classification_head import checkpoint_config, pad_as
from decero.execution.decoder_tokenizer import fit_decoder
from decero.execution.objective import Objective
from decero.execution.unwrap import unwrap
from decero.tasks.base import Corpus, Scores, Task, TaskData, cut_note
from decero.training.evaluation import predict_logits
from decero.training.runs import Run

NORMALIZED = "accuracy_normalized"


class MultipleChoice(Task):
    recipe, Config = "finetune_multiple_choice", FinetuneMultipleChoice
    auto_class: Any = AutoModelForMultipleChoice  # or AutoModelForCausalLM, see `__init__`
    tokenizer_needs = ("pad_token",)  # or another token to pad with, see `load_tokenizer`
    needs_offsets = False
    baselines = ("overlap",)
    budget_unit = "labels"
    scored_on = "test"

    def __init__(self, config: FinetuneMultipleChoice):
        super().__init__(config)
        self.by_likelihood = config.objective.score == "likelihood"
        if self.by_likelihood:
            self.auto_class = AutoModelForCausalLM

    @cached_property
    def checkpoint(self) -> Any:
        """The configuration of the checkpoint to start from; None for random weights."""
        return checkpoint_config(self.config.model)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer. One without a padding token pads with the checkpoint's, or with its end token."""
        tokenizer = tokenizer_for(self.config.tokenizer, self.config.model, needs=(), fast=self.by_likelihood)
        pad_with(tokenizer, None if self.checkpoint is None else self.checkpoint.get_text_config().pad_token_id)
        if self.by_likelihood:
            fit_decoder(tokenizer)  # a prompt must not end before its answer
        return tokenizer

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The texts with the place of the right choice, train cut to the label budget."""
        data, notes = self.config.data, list[str]()
        # questions about one context share a split, or a model would know the test contexts
        together = data.context_column or data.text_column
        corpus = load_corpus(
            **data.source(), needs_train=not self.config.eval_only, number_rows=True,
            hashes=lambda rows, column: text_hashes(rows, together),
        )  # fmt: skip
        corpus = read_choices(
            corpus, question=data.text_column, context=data.context_column, columns=data.choice_columns,
            lists=not isinstance(data.choices_column, list), choices=data.choices, label=data.label_column,
            say=notes.append,
        )  # fmt: skip
        if "train" in corpus:
            total = len(corpus["train"])
            corpus["train"] = label_budget(corpus["train"], data.max_train_rows, self.recipe, self.config.seed)
            notes += cut_note("train", len(corpus["train"]), total, "data.max_train_rows")
        most = max(len(row) for texts in corpus.values() for row in texts["choices"][:])
        places = () if self.by_likelihood else tuple(f"choice {place}" for place in range(most))
        return Corpus({split: {"": texts} for split, texts in corpus.items()}, ("text",), places, tuple(notes))

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data, objective = self.config.data, self.config.objective
        settings = {"max_length": data.max_length, "num_proc": data.num_proc, "where": split}
        if self.by_likelihood:
            cut = partial(tokenize_continuations, prompt=objective.prompt, separator=objective.separator)
            return {"": cut(parts[""], self.tokenizer, **settings)}
        return {"": tokenize_choices(parts[""], self.tokenizer, **settings)}

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        model = super().initial_model(section)
        if not self.by_likelihood:
            pad_as(model, self.tokenizer)
        return model

    def objective(self, model: nn.Module) -> Objective:
        if self.by_likelihood:
            return right_continuation(RightContinuation(self.tokenizer))
        # A model without segments cannot read the tokenizer's segment ids.
        segments = getattr(unwrap(model).config, "type_vocab_size", 2) >= 2
        return choice(ChoiceCollator(self.tokenizer, () if segments else ("token_type_ids",)))

    def reported_objective(self, model: nn.Module) -> Objective:
        return self.training_objective or self.objective(model)  # packed rows serve evaluations, too

    def _scores(self, run: Run, model: nn.Module, rows: Dataset) -> np.ndarray:
        """The score of each choice, (rows, most choices): a number of the head, or nats. -inf where there is none."""
        objective = self.reported_objective(model)
        if self.by_likelihood:
            objective = continuation_choice(EveryContinuation(self.tokenizer))
        scores = predict_logits(run.accelerator, model, rows, objective, run.training.per_device_eval_batch_size)
        if np.isnan(scores).any() or not np.isfinite(scores[:, 0]).all():
            raise UserError("the model's scores are NaN: the run diverged; lower optim.learning_rate")
        return scores.astype(np.float64)

    def _normalized(self, scores: np.ndarray, rows: Dataset) -> np.ndarray:
        """Nats a byte of each choice. -inf where there is none."""
        sizes = np.ones_like(scores)
        for row, own in enumerate(rows["sizes"][:]):
            sizes[row, : len(own)] = own
        return scores / sizes

    def _metrics(self, scores: np.ndarray, rows: Dataset) -> dict[str, float]:
        labels = np.asarray(rows["labels"][:])
        found = {"accuracy": float((scores.argmax(axis=1) == labels).mean())}
        if self.by_likelihood:
            found[NORMALIZED] = float((self._normalized(scores, rows).argmax(axis=1) == labels).mean())
        return found

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """Accuracy, and the loss of the right choice: nats a row of a softmax, or nats a token of its text."""
        scores, labels = self._scores(run, model, rows), np.asarray(rows["labels"][:])
        own = np.arange(len(labels)), labels
        loss = -log_softmax(scores, axis=1)[own].mean()
        if self.by_likelihood:
            tokens = sum(lengths[label] for lengths, label in zip(rows["lengths"][:], labels, strict=True))
            loss = -scores[own].sum() / tokens
        return self._metrics(scores, rows) | {"loss": float(loss)}

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        split = data.scored_split
        rows = data.held_out[split][""]
        scores, labels = self._scores(run, model, rows), np.asarray(rows["labels"][:])
        if run.is_main:
            self._write(run.output, self.corpus.splits[split][""], scores, rows)
        counts = np.isfinite(scores).sum(axis=1)
        right = scores.argmax(axis=1) == labels
        by_choices = {
            str(n): {"accuracy": float(right[counts == n].mean()), "examples": int((counts == n).sum())}
            for n in np.unique(counts).tolist()
        }
        facts = {"main_metric": "accuracy", "split": split, "score": self.config.objective.score}
        facts |= train_examples(self.corpus.splits)
        return Scores(self._metrics(scores, rows), facts | {"by_choices": by_choices})

    def _write(self, output: Path, texts: Dataset, scores: np.ndarray, rows: Dataset) -> None:
        """predictions.parquet: a row an example of the scored split, in its order.

        Columns: index, context, question, choices, label, prediction, scores (a number a choice); with likelihood also
        prediction_normalized and scores_normalized.
        """
        table: dict[str, Any] = {name: texts[name][:] for name in TEXTS} | {"label": rows["labels"][:]}
        kinds = {"": scores} | ({"_normalized": self._normalized(scores, rows)} if self.by_likelihood else {})
        for kind, values in kinds.items():
            table[f"prediction{kind}"] = values.argmax(axis=1)
            table[f"scores{kind}"] = [row[np.isfinite(row)].tolist() for row in values]
        pd.DataFrame(table).rename_axis("index").reset_index().to_parquet(output / "predictions.parquet", index=False)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", NORMALIZED) if self.by_likelihood else ("accuracy",)

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "predictions.parquet")
        chosen = table["prediction_normalized" if metric == NORMALIZED else "prediction"]
        return mean_statistics(chosen == table["label"])

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._scores(run, model, rows)
