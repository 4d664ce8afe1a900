"""Records are JSON, whatever a run measured; trackers get every run of a comparison."""

import json

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from decero.training.metrics_log import MetricsLog
from decero.training.records import write_json


def test_numbers_that_are_none_become_null(tmp_path):
    record = {"a": float("nan"), "b": [1.5, float("inf"), (-float("inf"), 2)], "c": {"d": np.float64("nan"), "e": None}}
    write_json(tmp_path / "result.json", record)
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == {
        "a": None, "b": [1.5, None, [None, 2]], "c": {"d": None, "e": None},
    }  # fmt: skip


class Board(GeneralTracker):
    """Weights & Biases, as far as steps matter: a step below the last one is dropped, and a metric can have its own."""

    name, requires_logging_directory = "wandb", False

    def __init__(self):
        super().__init__()
        self.last, self.axes, self.kept = 0, {}, []

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        pass

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values, step=None, **_):
        if step is None or step >= self.last:
            self.last = max(self.last, step or 0)
            self.kept.append(values)


def test_a_tracker_keeps_the_steps_of_a_second_run(tmp_path):
    board = Board()
    accelerator = Accelerator(cpu=True, log_with=[board])
    accelerator.init_trackers("project")
    for tag in ("ours/seed-0/", "theirs/seed-0/"):
        log = MetricsLog(accelerator, tmp_path / tag, 0, tag)
        for step in (1, 2):
            log.write(step=step, loss=1.0 / step)
    assert [each["theirs/seed-0/step"] for each in board.kept[2:]] == [1, 2]
    assert board.axes["theirs/seed-0/*"] == "theirs/seed-0/step"
    MetricsLog(accelerator, tmp_path / "alone", 0).write(step=3, loss=0.5)
    assert board.kept[-1] == {"loss": 0.5}
    assert board.last == 3
