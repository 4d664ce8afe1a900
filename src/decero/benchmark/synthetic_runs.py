"""Train and score arms on synthetic tasks, through the same loop as every other run."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from decero.benchmark.side_by_side import at_once, together
from decero.config.benchmark import Shape
from decero.config.long_range import Scored, Trained
from decero.config.sections import OptimSection, TrainingSection
from decero.data.list_ops import ListOps
from decero.data.recall import Recall
from decero.data.selective_copying import SelectiveCopying
from decero.data.synthetic import PADDING, SyntheticTask, collate_aligned, make_rows
from decero.errors import UserError
from decero.execution.build import read_preset
from decero.execution.objective import language_model
from decero.execution.positions import positions_of
from decero.execution.pretrained import one_line
from decero.files import remove_folder
from decero.training.evaluation import predict_masked
from decero.training.loop import train
from decero.training.records import TrainResult, write_json
from decero.training.runs import Run

OBJECTIVE = language_model(collate_aligned)
WARM_UP = 0.1  # share of the steps
LOGGED = 60  # points of a learning curve


def task_of(name: str, work: Any) -> SyntheticTask:
    """Return the task of an experiment."""
    if name == "recall":
        return Recall(work.vocab_size, work.length, work.num_pairs, work.power)
    if name == "list_ops":
        return ListOps(work.length, work.max_depth, work.max_arguments)
    return SelectiveCopying(work.vocab_size, work.length, work.num_tokens)


def build_arm(name: str, shape: Shape, vocab_size: int, length: int, seed: int) -> PreTrainedModel:
    """Build a decoder with weights drawn from `seed`, and with positions for `length` tokens where they are a setting.

    Raises UserError for a model that cannot be built or is too short.
    """
    fields = {"vocab_size": vocab_size, "pad_token_id": PADDING, "bos_token_id": None, "eos_token_id": None}
    transformers.set_seed(seed)
    with one_line(f"arms.{name}", "use a preset of configs/model"):
        config = read_preset(shape.config, fields | shape.overrides)
        if (getattr(config, "max_position_embeddings", None) or length) < length:
            config = read_preset(shape.config, fields | {"max_position_embeddings": length} | shape.overrides)
        model = AutoModelForCausalLM.from_config(config)
    positions = positions_of(model)
    if positions is not None and length > positions:
        raise UserError(
            f"arms.{name}: the model has {positions} positions, and rows have {length}; give fewer tokens, or more "
            "positions in its overrides"
        )
    return model


def fit(run: Run, folder: Path, model: PreTrainedModel, rows: Dataset, work: Trained, seed: int, rate: float):
    """Train a model on rows; a stopped training goes on where it stopped. Returns its TrainResult."""
    steps = work.max_train_steps
    training = TrainingSection(
        max_train_steps=steps, global_batch_size=work.global_batch_size, per_device_batch_size="auto",
        eval_strategy="no", save_steps=None, logging_steps=max(1, steps // LOGGED),
    )  # fmt: skip
    optim = OptimSection(learning_rate=rate, num_warmup_steps=round(WARM_UP * steps))
    own = replace(run, training=training, optim=optim, output=folder, seed=seed, progress=False, tag=f"{folder.name}/")
    return train(own, model, rows, OBJECTIVE)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the record in a file, or make it, and write it there at the end. took_s: how long that took."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        write_json(path, make() | {"took_s": time.perf_counter() - started})
        remove_folder(path.parent / "checkpoints")
    return json.loads(path.read_text(encoding="utf-8"))


def folder_of(run: Run, experiment: str, arms: dict[str, Shape], arm: str, seed: int, rate: float | None) -> Path:
    """Return the folder of one training, such as recall/0-attention/rate-0.003-seed-1."""
    name = f"{list(arms).index(arm)}-{re.sub(r'[^A-Za-z0-9]+', '-', arm)}"
    own = f"seed-{seed}" if rate is None else f"rate-{rate:g}-seed-{seed}"
    return run.output / experiment / name / own


cached_rows = lru_cache(maxsize=6)(make_rows)


def scored_runs(run: Run, name: str, work: Scored, tick: Callable[[str], Any]) -> dict[str, Any]:
    """Train every arm at every rate with the first seed, then at its best rate with the others.

    tick: called with a line after each training. Returns the part of result.json of the experiment.
    """

    def tell(record: dict[str, Any]) -> None:
        what = f"{name}, {record['arm']}, rate {record['rate']:g}, seed {record['seed']}"
        tick(f"{what}: validation accuracy {record['validation']['accuracy']:.1%}")

    def train_all(runs: list[tuple[str, int, float]]) -> dict[str, list[dict[str, Any]]]:
        records = together(run, scored_record, [(name, *each) for each in runs], tell, at_once(run))
        return {arm: [record for record in records if record["arm"] == arm] for arm in arms}

    task, arms = task_of(name, work), run.config.shapes(work)
    first, *others = work.seeds
    trials = train_all([(arm, first, rate) for arm in arms for rate in work.learning_rates])
    best = {
        arm: max(each, key=lambda trial: (trial["validation"]["accuracy"], -trial["validation"]["loss"]))
        for arm, each in trials.items()
    }
    more = train_all([(arm, seed, best[arm]["rate"]) for arm in arms for seed in others])
    found = {arm: {"rate": best[arm]["rate"], "trials": trials[arm], "runs": [best[arm], *more[arm]]} for arm in arms}
    test = cached_rows(task, "test", first, work.eval_rows)
    chance, guess = task.chance(test)
    return {"arms": found, "chance": chance, "guess": guess}


def scored_record(run: Run, name: str, arm: str, seed: int, rate: float) -> dict[str, Any]:
    """Return the record of a training, which is kept in a file: accuracy on validation and test, and cost."""
    work = run.config.experiments()[name]
    task, arms = task_of(name, work), run.config.shapes(work)
    folder = folder_of(run, name, arms, arm, seed, rate)

    def make() -> dict[str, Any]:
        rows = cached_rows(task, "train", seed, work.train_rows)
        model = build_arm(arm, arms[arm], task.vocab_size, task.length, seed)
        result = fit(run, folder, model, rows, work, seed, rate)
        held_out = {split: cached_rows(task, split, seed, work.eval_rows) for split in ("validation", "test")}
        scores = {split: score(run, result.model, rows, work.global_batch_size) for split, rows in held_out.items()}
        return {"seed": seed, "rate": rate} | summary_of(result) | scores

    return kept(folder / "result.json", make) | {"arm": arm}


def summary_of(result: TrainResult) -> dict[str, Any]:
    """Return cost and learning curve of a training."""
    rows = [row for row in result.history if "loss" in row]
    curve = {"step": [row["step"] for row in rows], "loss": [row["loss"] for row in rows]}
    cost = result.record()
    return {key: cost[key] for key in ("num_parameters", "tokens", "wall_time_s")} | {"curve": curve}


def score(run: Run, model: PreTrainedModel, rows: Dataset, batch_size: int) -> dict[str, float]:
    """Return accuracy and loss over the scored tokens."""
    table = predict_masked(run.accelerator, model, rows, OBJECTIVE, batch_size)
    return {
        "accuracy": float((table["prediction"] == table["label"]).mean()),
        "loss": -float(table["log_probability"].mean()),
    }
