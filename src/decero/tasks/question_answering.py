"""Extractive question answering: find the answer to a question in a context, or say that it is not there.

Source: Devlin et al. 2019, sections 4.2 and 4.3; the data and its scores: Rajpurkar et al. 2016 and 2018.
"""

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerFast

from decero.config.finetune_answers import FinetuneQuestionAnswering
from decero.config.sections import ModelSection
from decero.data.answer_rows import NAMES, TEXTS, question_budget, read_answers
from decero.data.answer_windows import AnswerCollator, tokenize_answers
from decero.data.corpus import load_corpus, train_examples
from decero.data.special_tokens import pad_with
from decero.evaluation.answer_metrics import (
    ANSWER_METRICS,
    answer_scores,
    best_threshold,
    by_context_length,
    mean_scores,
)
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import ExampleStatistics, mean_statistics
from decero.execution.answer_settings import FIELD, AnswerSettings, settings_of
from decero.execution.build import tokenizer_for
from decero.execution.classification_head import checkpoint_config, pad_as
from decero.execution.objective import Batch, Objective
from decero.execution.span_objective import no_answer_token, spans, window_logits, window_nats
from decero.execution.unwrap import unwrap
from decero.inference.question_answers import Reading, decided, merged, read_window, reads_segments
from decero.tasks.base import Corpus, Scores, Task, TaskData, cut_note
from decero.training.evaluation import predict_rows
from decero.training.runs import Run


class WindowResult(NamedTuple):
    """What a model says of one window, and its loss."""

    reading: Reading
    nats: float


class QuestionAnswering(Task):
    recipe, Config = "finetune_question_answering", FinetuneQuestionAnswering
    command = "answer --question QUESTION"
    auto_class = AutoModelForQuestionAnswering
    tokenizer_needs = ("pad_token",)  # or another token to pad with, see `load_tokenizer`
    baselines = ("sentence", "no_answer")
    budget_unit = "questions"
    scored_on = "test"

    def __init__(self, config: FinetuneQuestionAnswering):
        super().__init__(config)
        self.threshold: float | None = None  # of no answer, set by `calibrate`
        self.may_refuse = False  # whether there may be no answer, set by `read_corpus`

    # --- data

    @cached_property
    def checkpoint(self) -> Any:
        """The configuration of the checkpoint to start from; None for random weights."""
        return checkpoint_config(self.config.model)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer. One without a padding token pads with the checkpoint's, or with its end token."""
        tokenizer = tokenizer_for(self.config.tokenizer, self.config.model, needs=())
        pad_with(tokenizer, None if self.checkpoint is None else self.checkpoint.get_text_config().pad_token_id)
        return tokenizer

    @cached_property
    def reads(self) -> AnswerSettings:
        """How contexts are read: windows and the longest answer; of a model that is only scored, as it was trained."""
        data, given = self.config.data, self.config.call.given
        found = AnswerSettings(data.max_length, data.stride, data.max_answer_length)
        if not self.config.eval_only or not getattr(self.checkpoint, FIELD, None):
            return found
        saved = settings_of(self.checkpoint, None, str(self.config.model.name_or_path))
        names = ("max_length", "stride", "max_answer_length")
        return found._replace(**{name: getattr(saved, name) for name in names if f"data.{name}" not in given})

    @property
    def max_length(self) -> int:
        return self.reads.max_length

    def read_corpus(self, strict: bool = True) -> Corpus:
        """The questions and contexts with their answers, train cut to the label budget."""
        data = self.config.data
        read = load_corpus(**data.source(), needs_train=not self.config.eval_only, number_rows=True)
        corpus = {split: read_answers(rows, data, split) for split, rows in read.items()}
        train, notes = corpus.get("train"), list[str]()
        asked = list(corpus.values()) if train is None else [train]  # they say whether there may be no answer
        self.may_refuse = {"on": True, "off": False}.get(
            self.config.objective.no_answer, not all(len(texts) for rows in asked for texts in rows[TEXTS])
        )
        if train is not None:
            corpus["train"] = question_budget(train, data.max_train_rows, self.config.seed)
            notes += cut_note("train", len(corpus["train"]), len(train), "data.max_train_rows")
        if self.reads[:2] != (data.max_length, data.stride):
            notes.append(f"windows as the model was trained: of {self.max_length} tokens, {self.reads.stride} shared")
        columns = data.context_column, data.question_column
        return Corpus({split: {"": rows} for split, rows in corpus.items()}, columns, notes=tuple(notes))

    def tokenize(self, parts: dict[str, Any], split: str) -> dict[str, Any]:
        data = self.config.data
        rows = tokenize_answers(
            parts[""], self.tokenizer, max_length=self.max_length, stride=self.reads.stride,
            question_column=data.question_column, context_column=data.context_column, num_proc=data.num_proc,
            where=split,
        )  # fmt: skip
        return {"": rows}

    def load_data(self, run: Run, splits: tuple[str, ...] | None = None) -> TaskData:
        """As `Task`, and say how many windows there are, and which answers the settings cut off."""
        data = super().load_data(run, splits)
        if run.progress:
            rows: Any = data.train
            split = "train" if "train" in self.corpus.splits else next(iter(self.corpus.splits))
            questions, found = len(self.corpus.splits[split][""]), self.reach(rows)
            run.print(
                f"{split}: {questions:,} questions in {len(rows):,} windows of at most {self.max_length} tokens; "
                f"{found['too_long']:.1%} of the answers have more than {self.reads.max_answer_length} tokens "
                f"(data.max_answer_length), {found['cut']:.1%} fit in no window"
            )
            if self.may_refuse and "validation" not in data.held_out and not run.eval_only:
                run.print("no validation split: the threshold of no answer is 0, which was not chosen on any data")
        return data

    def reach(self, rows: Dataset) -> dict[str, float]:
        """The shares of answered questions whose first answer is `too_long`, or whose answers are `cut`.

        cut: no window holds any answer of the question.
        """
        tokens: dict[int, int] = {}
        inside: dict[int, bool] = defaultdict(bool)
        columns = rows["example"][:], rows["answer_tokens"][:], rows["answer_first"][:]
        for example, length, first in zip(*columns, strict=True):
            if length:
                tokens[example] = length
                inside[example] |= first >= 0
        total = max(1, len(tokens))
        too_long = sum(length > self.reads.max_answer_length for length in tokens.values())
        return {"too_long": too_long / total, "cut": sum(not seen for seen in inside.values()) / total}

    # --- model and objective

    def initial_model(self, section: ModelSection) -> PreTrainedModel:
        model = super().initial_model(section)
        pad_as(model, self.tokenizer)
        return model

    def objective(self, model: nn.Module) -> Objective:
        bare = unwrap(model)
        return spans(AnswerCollator(self.tokenizer, reads_segments(bare), no_answer_token(bare, self.tokenizer)))

    def reported_objective(self, model: nn.Module) -> Objective:
        return self.training_objective or self.objective(model)  # packed windows serve evaluations, too

    # --- evaluation

    def _read(self, run: Run, model: nn.Module, rows: Dataset, split: str) -> list[WindowResult]:
        """What the model says of every window."""
        contexts, longest = self.corpus.splits[split][""], self.reads.max_answer_length
        place = no_answer_token(model, self.tokenizer)

        def read_out(bare: nn.Module, batch: Batch, indices: list[int]) -> list[WindowResult]:
            logits_WL2, labels_WL = window_logits(bare, batch)
            nats_W, chosen = window_nats(logits_WL2, labels_WL).tolist(), rows[indices]
            texts = contexts[chosen["example"]][self.config.data.context_column]
            found = []
            for w, logits_L2 in enumerate(logits_WL2.cpu().numpy()):
                none = 0 if place == "first" else len(chosen["input_ids"][w]) - 1
                characters = np.array([chosen["starts"][w], chosen["ends"][w]], dtype=np.int64)
                first = chosen["context_first"][w]
                reading = read_window(logits_L2, first, characters, texts[w], none, longest)
                found.append(WindowResult(reading, nats_W[w]))
            return found

        size, objective = run.training.per_device_eval_batch_size, self.reported_objective(model)
        return predict_rows(run.accelerator, model, rows, objective, size, read_out)

    def _table(self, rows: Dataset, results: list[WindowResult], split: str, threshold: float | None) -> pd.DataFrame:
        """A row a question, in order: its answer with scores. `first_`: the answer of the first window alone."""
        by_example: dict[int, list[Reading]] = defaultdict(list)
        for example, result in zip(rows["example"][:], results, strict=True):
            by_example[example].append(result.reading)
        table = []
        for example in sorted(by_example):
            row = self.corpus.splits[split][""][example]
            context, readings = row[self.config.data.context_column], by_example[example]
            reading = merged(readings)
            answer, first = (decided(each, context, threshold) for each in (reading, merged(readings[:1])))
            n_best = [
                {"text": context[start:end], "start": start, "end": end, "score": score}
                for start, end, score in reading.candidates
            ]
            best = n_best[0]["text"] if n_best else ""
            scores = {
                name: answer_scores(text, row[TEXTS], self.config.objective.articles)
                for name, text in {"": answer.text, "best_": best, "none_": "", "first_": first.text}.items()
            }
            found = {"id": row[NAMES], "question": row[self.config.data.question_column], "references": row[TEXTS]}
            found |= {"answer": answer.text, "start": answer.start, "end": answer.end, "score": answer.score}
            found |= {"margin": reading.margin, "no_answer_score": reading.no_answer, "n_best": n_best}
            found |= {"windows": len(readings), "context_characters": len(context)}
            for name, (exact, f1) in scores.items():
                found |= {f"{name}exact_match": exact, f"{name}f1": f1}
            table.append(found)
        return pd.DataFrame(table)

    def _answer(
        self, run: Run, model: nn.Module, rows: Dataset, split: str, threshold: float | None = None
    ) -> tuple[pd.DataFrame, float]:
        """The table of answers, and the mean loss of a window. Without a threshold, always answer."""
        results = self._read(run, model, rows, split)
        return self._table(rows, results, split, threshold), float(np.mean([each.nats for each in results]))

    def calibrate(self, run: Run, model: nn.Module, data: TaskData) -> None:
        """Choose the threshold of no answer: that of the best F1 on validation. `--eval-only` takes the saved one."""
        wanted, own = self.config.objective.no_answer, unwrap(model).config
        if run.eval_only and wanted != "off" and getattr(own, FIELD, None):
            self.threshold = settings_of(own, None, str(self.config.model.name_or_path)).no_answer_threshold
            if self.threshold is not None or wanted == "auto":
                return
        if self.may_refuse:
            self.threshold = 0.0
            if data.validation is not None:
                self.threshold = self._threshold(self._answer(run, model, data.validation, "validation")[0])

    def _threshold(self, table: pd.DataFrame) -> float:
        columns = (table[name].to_numpy(dtype=np.float64) for name in ("margin", "best_f1", "none_f1"))
        return best_threshold(*columns)

    def evaluate(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> dict[str, float]:
        """`loss`, F1 and exact match of validation; with no answer where that gives the best F1."""
        table, loss = self._answer(run, model, rows, "validation")
        if self.may_refuse:
            silent = table["margin"] > self._threshold(table)
            for name in ("f1", "exact_match"):
                table[name] = table[f"best_{name}"].where(~silent, table[f"none_{name}"])
        return scores_of(table) | {"loss": loss}

    def scoring_pass(self, run: Run, model: nn.Module, rows: Dataset, data: TaskData) -> Any:
        return self._answer(run, model, rows, "validation" if data.validation is not None else data.scored_split)

    def score(self, run: Run, model: nn.Module, data: TaskData) -> Scores:
        if self.threshold is None:
            self.calibrate(run, model, data)
        split = data.scored_split
        table, loss = self._answer(run, model, data.held_out[split][""], split, self.threshold)
        if run.is_main:
            write_answers(run.output, table)
        columns = ["f1", "exact_match", "first_f1", "first_exact_match", "windows"]
        lengths = table["context_characters"].to_numpy()
        facts: dict[str, Any] = train_examples(self.corpus.splits) | {
            "articles": self.config.objective.articles,
            "split": split,
        }
        facts |= {"train_windows": len(data.train)} if "train" in self.corpus.splits else {}  # type: ignore[arg-type]
        facts |= {"no_answer_threshold": self.threshold, "first_window_only": scores_of(table, "first_")}
        facts["by_context_length"] = by_context_length(lengths, {name: table[name].to_numpy() for name in columns})
        return Scores(scores_of(table) | {"loss": loss}, facts)

    def prepare_to_save(self, model: Any) -> None:
        """Record how contexts were read and when there is no answer, for `decero answer`."""
        setattr(model.config, FIELD, self.reads._replace(no_answer_threshold=self.threshold)._asdict())

    # --- comparison

    @property
    def metrics(self) -> tuple[str, ...]:
        return ANSWER_METRICS[:2] if self.config.objective.no_answer == "off" else ANSWER_METRICS

    def example_statistics(self, folder: Path, metric: str) -> ExampleStatistics:
        table = pd.read_parquet(folder / "predictions.parquet")
        if metric in ("f1", "exact_match"):
            return mean_statistics(table[metric])
        answerable = table["references"].map(len).to_numpy() > 0
        counted = ~answerable if metric == "no_answer_accuracy" else answerable
        values = table["f1" if metric.endswith("_f1") else "exact_match"].to_numpy(dtype=np.float64)
        return ExampleStatistics(np.stack([values * counted, counted.astype(np.float64)], axis=1), ratio)


def scores_of(table: pd.DataFrame, kind: str = "") -> dict[str, float]:
    """Return the mean scores of a table of answers. kind: "" or "first_"."""
    exact, f1 = (table[f"{kind}{name}"].to_numpy(dtype=np.float64) for name in ("exact_match", "f1"))
    return mean_scores(exact, f1, table["references"].map(len).to_numpy() > 0)


def write_answers(output: Path, table: pd.DataFrame) -> None:
    """predictions.parquet: a row a question of the scored split, in its order."""
    hidden = [name for name in table.columns if name.startswith(("best_", "none_"))]
    table.drop(columns=hidden).to_parquet(output / "predictions.parquet", index=False)
