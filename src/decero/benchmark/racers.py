"""Run one side of a race, in a process of its own: the stock recipe, or ours as its recipe runs it."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from decero.benchmark.judge import Ask, Judge, Stopped, block_length, validation_objective, validation_rows
from decero.benchmark.stock_recipe import blocks, stock_collator, train_stock
from decero.config.race import RECIPES, RaceSection
from decero.data.corpus import load_corpus
from decero.errors import UserError, run_script
from decero.execution.adapters import costs
from decero.execution.build import build_model
from decero.execution.precision import settle_precision
from decero.files import remove_folder
from decero.tasks import TASKS, Task
from decero.training.loop import train
from decero.training.memory import keep_freed_memory
from decero.training.metrics_log import read_metrics
from decero.training.runs import Run, multiply_in_tf32

PATIENCE = 10  # seconds to wait for a run to leave
_PROCESSES: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def task_of(race: RaceSection, name: str, seed: int, output: str) -> Task:
    """Return the task of ours or of a candidate; of a stock recipe, the task that its class has."""
    if not race.is_stock(name):
        return TASKS[race.recipe](race.our_recipe(name, seed, output))
    settings = {
        "output": output, "seed": seed, "model": race.stock_recipe(name).model.model_dump(exclude_unset=True),
        "tokenizer": race.tokenizer.model_dump(exclude_unset=True), "data": race.data.model_dump(exclude_unset=True),
        "training": {"max_train_steps": 1},
    }  # fmt: skip
    return TASKS[race.recipe](RECIPES[race.recipe].parse(settings, "race.stock", set()))


def body_parameters(model: PreTrainedModel) -> int:
    """Count the parameters without the tables of embeddings and the projection to the vocabulary."""
    projection: Any = model.get_output_embeddings()
    excluded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    excluded |= {id(projection.weight), id(projection.bias)} if projection is not None else set()
    return sum(p.numel() for p in model.parameters() if id(p) not in excluded)


def run_stock(race: RaceSection, name: str, seed: int, output: Path, ask: Ask) -> dict[str, Any]:
    """Run the stock recipe to its last step, or until `ask` ends it. Returns facts of the model."""
    settings, accelerator, task = race.stock_recipe(name), Accelerator(), task_of(race, name, seed, str(output))
    model = build_model(settings.model, task.auto_class, task.tokenizer, race.data.max_length, seed)
    model.to(accelerator.device)  # type: ignore[arg-type]
    rows = validation_rows(race, task.tokenizer)
    judge = Judge(model, validation_objective(race, task.tokenizer, model), rows, accelerator.device, ask)
    length = block_length(race)
    corpus = load_corpus(**race.data.source())["train"]
    examples = blocks(corpus, task.tokenizer, length, race.data.text_column, settings.rows)
    collate = stock_collator(race.recipe, task.tokenizer, model, length, seed)
    judge.start()
    _until_stopped(lambda: train_stock(settings, model, examples, collate, seed, judge))
    return {"parameters": model.num_parameters(), "says": [f"rows: {settings.rows}"], **_flops(model)}


def run_ours(race: RaceSection, name: str, seed: int, output: Path, ask: Ask) -> dict[str, Any]:
    """Run our recipe to its last step, or until `ask` ends it. Returns facts of the model.

    The clock includes the choice of the attention kernel and the proof that rows may be packed.
    """
    task = task_of(race, name, seed, str(output))
    settings: Any = task.config
    settle_precision(settings.training)
    average, every = settings.training.average_last or 1, settings.training.eval_steps
    training = settings.training.model_copy(
        update={
            "save_steps": None,
            "average_last": None,
            "logging_steps": every,
        }  # the judge computes the mean weights; these runs are not resumed
    )
    accelerator = Accelerator(mixed_precision=training.mixed_precision)
    run = Run(accelerator, training, settings.optim, output, seed, progress=False, config=settings)
    data = task.load_data(run, ("train",))
    model = task.build_model()
    rows = validation_rows(race, task.tokenizer)
    judge = Judge(model, validation_objective(race, task.tokenizer, model), rows, accelerator.device, ask, average)

    def evaluate(trained: nn.Module) -> dict[str, float]:
        logged = read_metrics(output / "metrics.jsonl")[-1]  # written just before
        return {"loss": judge(trained, int(logged["step"]), int(logged["tokens"]))}

    judge.start()
    objective = task.optimize(run, model, data)
    _until_stopped(lambda: train(run, model, data.train, objective, evaluate))
    remove_folder(output / "checkpoints")  # of a run that came to its last step
    says = [f"packing: {'on' if objective.packed else 'off'}"]
    return {"parameters": model.num_parameters(), "says": says, **_flops(model)}


def _until_stopped(action: Callable[[], Any]) -> None:
    try:
        action()
    except Stopped:
        return


def _flops(model: PreTrainedModel) -> dict[str, int]:
    return {"flops_per_token": costs(model, 1)["total_flos"], "body_parameters": body_parameters(model)}


class Racer:
    """Control a run in a child process, with its own allocator and thread settings."""

    def __init__(self, race: RaceSection, name: str, seed: int, output: Path):
        if sys.platform == "linux":
            _PROCESSES.set_forkserver_preload(["decero.benchmark.process", "decero.benchmark.summary", __name__])
        self.name = f"{name}, seed {seed}"
        self.ours, theirs = _PROCESSES.Pipe()
        threads = torch.get_num_threads()
        self.child = _PROCESSES.Process(
            target=serve, args=(theirs, race.model_dump(exclude_unset=True), name, seed, output, threads), daemon=True
        )
        self.child.start()
        theirs.close()  # so that reading fails when the child ends

    def follow(self, ask: Ask) -> dict[str, Any]:
        """Answer the run's questions until it ends; return its facts, or {"error": why it failed}.

        Raises UserError if the process ends too early.
        """
        try:
            while True:
                kind, content = self.ours.recv()
                if kind == "ended":
                    self.child.join(timeout=PATIENCE)
                    return content
                self.ours.send(ask(content))
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self.child.join()
            why = "probably out of memory" if self.child.exitcode == -signal.SIGKILL else "see above"
            raise UserError(f"race: {self.name}: its process ended with {self.child.exitcode}, {why}") from None
        finally:
            self.end()

    def end(self) -> None:
        self.ours.close()
        self.child.kill()  # it has nothing to save
        self.child.join()


def serve(theirs: Connection, settings: dict, name: str, seed: int, output: Path, threads: int) -> None:
    """Run in the child: one side of the race, which asks the parent after each evaluation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    os.dup2(2, 1)  # keep prints of libraries out of the tables

    def ask(evaluated: dict[str, Any]) -> bool:
        theirs.send(("evaluated", evaluated))
        try:
            return theirs.recv()
        except EOFError:
            raise SystemExit(1) from None  # the parent is gone

    run_script(lambda: _serve(theirs, RaceSection.model_validate(settings), name, seed, output, threads, ask))


def _serve(
    theirs: Connection, race: RaceSection, name: str, seed: int, output: Path, threads: int, ask: Ask
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    datasets.disable_progress_bars()
    stock = race.is_stock(name)
    if not stock:  # as in a decero run; no example of transformers does so
        multiply_in_tf32() if torch.cuda.is_available() else keep_freed_memory()
    try:
        facts = (run_stock if stock else run_ours)(race, name, seed, output, ask)
    except UserError as error:
        facts = {"error": str(error)}
    theirs.send(("ended", facts))
