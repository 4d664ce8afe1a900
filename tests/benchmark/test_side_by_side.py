"""Trainings at the same time: the same records as one after another, and no process that stays."""

import multiprocessing
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tests.recipes.conftest import ROOT
from tests.recipes.test_long_range import tiny

from decero.benchmark import gradient_distance, side_by_side, synthetic_runs
from decero.benchmark.side_by_side import at_once, together
from decero.config.long_range import LongRange
from decero.config.sections import OptimSection, TrainingSection
from decero.errors import UserError
from decero.training.runs import Run


def opened(tmp_path, *words):
    config = LongRange.load(str(ROOT / "configs/long_range/claims.yaml"), [f"output={tmp_path}", *words])
    return Run(Accelerator(cpu=True), TrainingSection(max_train_steps=1), OptimSection(), tmp_path, config=config)


def whole(run, number):
    """A training that takes longer the earlier it is given."""
    if number == 13:
        raise UserError("rate 13 is wrong")
    if number == 17:
        os._exit(9)
    time.sleep(0.2 / (1 + number))
    return {"number": number, "process": os.getpid(), "threads": torch.get_num_threads(), "seed": run.seed}


def test_a_cpu_has_one_for_each_core_and_others_one(monkeypatch):
    def run(device="cpu", trackers=()):
        return SimpleNamespace(accelerator=SimpleNamespace(device=torch.device(device), log_with=list(trackers)))

    monkeypatch.setattr(side_by_side, "usable_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [at_once(run()), at_once(run("cuda")), at_once(run(trackers=["tensorboard"]))] == [7, 1, 1]
    for threads, count in (("1", 7), ("2", 3), ("9", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert at_once(run()) == count


@pytest.mark.long
def test_records_come_in_order_from_other_processes(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run, told = replace(opened(tmp_path), seed=5), []
    records = together(run, whole, [(n,) for n in range(5)], told.append, 3)
    assert [record["number"] for record in records] == list(range(5))
    assert sorted(record["number"] for record in told) == list(range(5))
    assert {record["threads"] for record in records} == {1}
    assert {record["seed"] for record in records} == {5}
    assert 2 <= len({record["process"] for record in records} - {os.getpid()}) <= 3
    assert together(run, whole, [(3,)], told.append, 3)[0]["process"] == os.getpid()  # one alone
    with pytest.raises(UserError, match="rate 13 is wrong"):
        together(run, whole, [(13,), (1,)], told.append, 2)
    with pytest.raises(UserError, match="a training's process ended with 9, see above"):
        together(run, whole, [(17,), (1,)], told.append, 2)
    assert not multiprocessing.active_children()


@pytest.mark.long
def test_trainings_side_by_side_equal_those_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    found = []
    for count in (1, 2):
        for room in (gradient_distance, synthetic_runs):
            monkeypatch.setattr(room, "at_once", lambda run, count=count: count)
        run = opened(tmp_path / str(count), *tiny("gradients", "recall"))
        lines = []
        parts = [
            gradient_distance.gradient_runs(run, run.config.gradients, lines.append),
            synthetic_runs.scored_runs(run, "recall", run.config.recall, lines.append),
        ]
        assert len(lines) == 2 * 2 + 2 * (3 + 1)
        found.append(without_times(parts))
    assert found[0] == found[1]


def without_times(found):
    if isinstance(found, dict):
        return {name: without_times(value) for name, value in found.items() if not name.endswith(("_s", "process"))}
    return [without_times(each) for each in found] if isinstance(found, list) else found
