"""Execution of a plan: what a run inherits from the comparison, and what other settings leave behind."""

from dataclasses import replace

import pytest
from accelerate import Accelerator

from decero.comparison import execute
from decero.comparison.plan import PlannedRun
from decero.config.finetuning import FinetuneClassification
from decero.config.sections import OptimSection, TrainingSection
from decero.training.runs import Run


@pytest.fixture
def planned(tmp_path):
    config = FinetuneClassification.parse(
        {"output": str(tmp_path), "model": {"config": "x"}, "data": {"name": "y"}, "training": {"max_train_steps": 2}},
        "",
    )
    return PlannedRun("ours", None, 0, tmp_path, config, "ours, seed 0")


def test_runs_under_other_settings_are_not_resumed(planned, tmp_path):
    for folder in ("checkpoints", "model"):
        (tmp_path / folder).mkdir()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    execute._write_settings(planned)
    execute._write_settings(planned)
    assert (tmp_path / "checkpoints").is_dir(), "the same settings keep what is there"
    other = planned.config.model_copy(update={"optim": OptimSection(learning_rate=1e-2)})
    execute._write_settings(replace(planned, config=other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
    assert "learning_rate: 0.01" in (tmp_path / "config.yaml").read_text()


def test_a_run_is_sharded_as_its_comparison_is(planned, tmp_path, monkeypatch):
    seen = []

    class Stopped(Exception):  # noqa: N818
        pass

    class Task:
        splits = None

        def __init__(self, config):
            pass

        def load_data(self, run, splits):
            seen.append(run)
            raise Stopped

    plan = type("Plan", (), {"comparison": type("Compare", (), {"task": "finetune_classification"})})
    monkeypatch.setitem(execute.TASKS, "finetune_classification", Task)
    opened = Run(Accelerator(cpu=True), TrainingSection(max_train_steps=9), OptimSection(), tmp_path, sharded=True)
    with pytest.raises(Stopped):
        execute._fit(plan, planned, opened)
    assert seen[0].sharded
    assert seen[0].training.max_train_steps == 2
    assert seen[0].output == tmp_path
