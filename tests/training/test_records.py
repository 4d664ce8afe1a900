"""Records are JSON, whatever a run measured."""

import json

import numpy as np

from decero.training.records import write_json


def test_numbers_that_are_none_become_null(tmp_path):
    record = {"a": float("nan"), "b": [1.5, float("inf"), (-float("inf"), 2)], "c": {"d": np.float64("nan"), "e": None}}
    write_json(tmp_path / "result.json", record)
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == {
        "a": None, "b": [1.5, None, [None, 2]], "c": {"d": None, "e": None},
    }  # fmt: skip
