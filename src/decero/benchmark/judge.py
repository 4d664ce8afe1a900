"""Judge a race: one validation loss for both sides, a clock that stops while it is computed, a unit of time."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from decero.benchmark.measure import synchronize
from decero.benchmark.stock_recipe import blocks
from decero.config.race import RaceSection
from decero.data.causal import CausalLanguageModeling
from decero.data.collators import MaskedLanguageModeling
from decero.data.corpus import load_corpus
from decero.data.corruption import SpanCorruption
from decero.errors import UserError
from decero.execution.objective import Objective, language_model, masked_lm
from decero.execution.unwrap import unwrap
from decero.training.evaluation import mean_loss

FROZEN_SEED = 0  # of masks and spans of the validation text: the same for all sides, seeds and runs
EVALUATION_ROWS = 64  # at a time

Ask = Callable[[dict[str, Any]], bool]  # what was evaluated -> whether to go on


class Stopped(Exception):  # noqa: N818 (no error)
    """End a run before its last step: the loss is low enough."""


def block_length(race: RaceSection) -> int:
    """Return the tokens of a row before span corruption adds the end token to it."""
    return race.data.max_length - (race.recipe == "pretrain_seq2seq")


def validation_rows(race: RaceSection, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Return the rows that both sides are scored on: the validation text, joined and cut as the stock recipe does.

    Raises UserError for data without a validation split.
    """
    corpus = load_corpus(**race.data.source())
    if "validation" not in corpus:
        raise UserError("race.data: no validation split; give data.files.validation or data.validation_fraction")
    rows = blocks(corpus["validation"], tokenizer, block_length(race), race.data.text_column)
    ids = rows.select(range(min(race.validation_rows, len(rows))))["input_ids"][:]
    words = [[True] * len(row) for row in ids]
    return Dataset.from_dict({"input_ids": ids, "starts_word": words, "ends": [False] * len(ids)})


def validation_objective(race: RaceSection, tokenizer: PreTrainedTokenizerFast, model: Any) -> Objective:
    """Return what is scored, the same for every model with this tokenizer.

    Masked LM: 15 % of single tokens, the masks of the stock recipe, frozen. Causal LM: every token but the first of a
    row. Span corruption: frozen spans, 15 % of the tokens, 3 tokens on average.
    """
    if race.recipe == "pretrain_mlm":
        return masked_lm(
            MaskedLanguageModeling(tokenizer, whole_word=False, seed=FROZEN_SEED, frozen=True), scored_queries=False
        )
    if race.recipe == "pretrain_causal_lm":
        return language_model(CausalLanguageModeling(tokenizer, score_ends=False))
    start = unwrap(model).config.decoder_start_token_id
    return language_model(
        SpanCorruption(tokenizer, start, max_length=block_length(race), seed=FROZEN_SEED, frozen=True)
    )


class Judge:
    """Compute the validation loss of a model in training, and time the training without it.

    The loss is computed in fp32 by a copy of the model with sdpa, whatever kernel, precision and packing train it.
    average: score the mean of the weights of this many last evaluations. ask: gets step, seconds, tokens and loss, and
    says whether to go on; the clock is stopped while it answers.
    Raises Stopped where the answer is no.
    """

    def __init__(
        self, model: PreTrainedModel, objective: Objective, rows: Dataset, device: torch.device, ask: Ask,
        average: int = 1,
    ):  # fmt: skip
        self.twin: Any = copy.deepcopy(model).to(device).eval()  # type: ignore[arg-type]
        self.objective, self.rows, self.device, self.ask, self.average = objective, rows, device, ask, average
        self.weights: list[dict[str, torch.Tensor]] = []
        self.started, self.paused = time.perf_counter(), 0.0

    def start(self) -> None:
        """Start the clock."""
        synchronize(self.device)
        self.started, self.paused = time.perf_counter(), 0.0

    def __call__(self, model: nn.Module, step: int, tokens: int) -> float:
        """Score the model after `step` steps and `tokens` tokens; return its loss."""
        synchronize(self.device)
        pause = time.perf_counter()
        seconds = pause - self.started - self.paused
        loss = self.loss(model)
        go_on = self.ask({"step": step, "seconds": seconds, "tokens": tokens, "loss": loss})
        self.paused += time.perf_counter() - pause
        if not go_on:
            raise Stopped
        return loss

    def loss(self, model: nn.Module) -> float:
        """Return the mean loss over the scored tokens, in nats."""
        state = unwrap(model).state_dict()
        if self.average > 1:
            kept = {name: tensor.detach().clone() for name, tensor in state.items()}
            self.weights = [*self.weights, kept][-self.average :]
            count = len(self.weights)
            state = {name: sum(each[name] for each in self.weights) / count for name in kept}  # type: ignore[misc]
        self.twin.load_state_dict(state)
        accelerator = Accelerator()  # the one that there is
        return mean_loss(accelerator, self.twin, self.rows, self.objective, EVALUATION_ROWS)["loss"]


class ReferenceStep:
    """Time a fixed piece of work, to say how fast a machine is at this moment.

    A training step of a stock BERT (width 192, 2 layers, 3 heads, vocabulary 8,192) on 8 rows of 128 tokens, in fp32
    with AdamW. A run's time divided by it compares between machines, and between hours of a busy one: Reference System
    Time (Kaddour et al. 2023, "No Train No Gain", section 3) with a piece of work as the unit.
    """

    def __init__(self, device: torch.device):
        self.device = device
        config = BertConfig(
            vocab_size=8192, hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: Any = BertForMaskedLM(config).to(device).train()  # type: ignore[arg-type]
            self.ids = torch.randint(8192, (8, 128), device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.seconds(1)

    def seconds(self, repeats: int = 3) -> float:
        """Return the seconds of a step, the median of `repeats`."""
        times = []
        for _ in range(repeats):
            synchronize(self.device)
            started = time.perf_counter()
            self.model(input_ids=self.ids, labels=self.ids).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            synchronize(self.device)
            times.append(time.perf_counter() - started)
        return sorted(times)[repeats // 2]
