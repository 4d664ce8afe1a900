"""Rows that grow, masks that become fewer and a trapezoid rate, as a user runs them."""

import json

import pytest


def test_a_run_begins_with_short_rows_and_its_forecast_does_not(launch, mlm, tmp_path):
    output = tmp_path / "run"
    words = [
        "data.length_warmup=0.8", "objective.final_mlm_probability=0.5", "optim.schedule=warmup_stable_decay",
        "optim.num_decay_steps=15", "training.max_train_steps=20", "training.packing=off", f"output={output}",
    ]  # fmt: skip
    forecasts = [launch("pretrain_mlm", mlm, *each, "--dry-run").stdout for each in (words, words[1:])]
    lines = [next(line for line in text.splitlines() if "tokens a step" in line) for text in forecasts]
    assert lines[0] == lines[1]  # whole rows
    launch("pretrain_mlm", mlm, *words)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    tokens = [row["tokens"] for row in rows if "tokens" in row]
    first, last = tokens[2], tokens[19] - tokens[16]
    assert first <= 3 * 7 * 9  # 7 rows; a quarter of 29 tokens, and a little more
    assert last > 1.5 * first
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates[2:6] == pytest.approx([2e-2 / 3, 1e-2, 1e-2, 1e-2])
    assert rates[19] == pytest.approx(1e-2 / 15)
