"""The folds of a seed become one run; a fold that failed fails its seed and leaves no answers behind."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from accelerate import Accelerator

from decero.comparison.plan import Plan, PlannedRun
from decero.comparison.pooling import pool_folds


def test_answers_are_pooled_in_the_order_of_the_file(tmp_path):
    task = SimpleNamespace(problem_type="single_label_classification")
    runs = [PlannedRun("ours", None, 0, tmp_path / f"fold-{n}", None, "", fold=n) for n in range(2)]
    plan = Plan(SimpleNamespace(folds=2), task, "accuracy", "test", [], runs)
    opened = SimpleNamespace(accelerator=Accelerator(cpu=True), is_main=True)
    for number, rows in enumerate(([3, 0], [2, 1])):
        runs[number].folder.mkdir()
        table = pd.DataFrame({"index": [0, 1], "row": rows, "label": [1, 0], "prediction": [1, number]})
        table.to_parquet(runs[number].folder / "predictions.parquet")
        record = {"status": "ok", "metric": {"accuracy": 0.5}, "label_names": ["a", "b"], "wall_time_s": 1 + number}
        record |= {"peak_memory_bytes": 100 + 2 * number, "trained_parameters": 7, "num_parameters": 118 + number}
        (runs[number].folder / "result.json").write_text(json.dumps(record))
    pool_folds(plan, opened)
    answers, record = (
        pd.read_parquet(tmp_path / "predictions.parquet"),
        json.loads((tmp_path / "result.json").read_text()),
    )
    assert answers["row"].tolist() == answers["index"].tolist() == [0, 1, 2, 3]
    assert answers["fold"].tolist() == [0, 1, 1, 0]
    assert record["metric"]["accuracy"] == pytest.approx(3 / 4)
    assert record["confusion_matrix"] == [[1, 1], [0, 2]]
    assert (record["folds"], record["rows"], record["wall_time_s"]) == (2, 4, 1.5)
    facts = ("peak_memory_bytes", "trained_parameters", "num_parameters")
    assert [record[name] for name in facts] == [101, 7, 118], "of one training, not of the process that pools"

    (runs[1].folder / "result.json").write_text(json.dumps({"status": "failed", "error": "torn", "metric": {}}))
    pool_folds(plan, opened)
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "fold 1: torn")
    assert not (tmp_path / "predictions.parquet").exists()
