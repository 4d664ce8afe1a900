"""A recipe with the launcher's FSDP2 file, as a user starts it; unsupported options are refused in one line."""

import json

import numpy as np
import pytest
from transformers import AutoModelForMaskedLM

PARALLEL = "--config_file", "configs/accelerate/cpu_2_processes.yaml", "--main_process_port", "0"
SHARDED = "--config_file", "configs/accelerate/fsdp2_cpu_2_processes.yaml", "--main_process_port", "0"


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow  # what it rests on is in tests/training/test_sharding.py
def test_a_sharded_recipe_equals_one_process(launch, mlm, tmp_path):
    """50 steps in fp32 without dropout: equal to 1e-5, with an ordinary model folder."""
    launch("pretrain_mlm", mlm, f"output={tmp_path}/one", "training.save_steps=25")
    words = f"output={tmp_path}/two", "training.save_steps=25"
    printed = launch("pretrain_mlm", mlm, *words, launcher=SHARDED).stdout
    assert "topology: 2 processes on cpu" in printed
    assert "fp32, sharded (FSDP2)" in printed
    assert np.abs(np.subtract(losses(tmp_path / "one"), losses(tmp_path / "two"))).max() <= 1e-5
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert two["metric"] == pytest.approx(one["metric"], abs=1e-5)
    assert {name: two[name] for name in ("steps", "tokens", "num_parameters")} == {
        name: one[name] for name in ("steps", "tokens", "num_parameters")
    }
    models = [AutoModelForMaskedLM.from_pretrained(tmp_path / name / "model") for name in ("one", "two")]
    assert models[0].config.architectures == models[1].config.architectures == ["DeceroEncoderForMaskedLM"]
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert ours.shape == theirs.shape, name
    files = {path.name for path in (tmp_path / "two" / "checkpoints" / "step-00000050").iterdir()}
    assert {"model-0-of-2.safetensors", "model-1-of-2.safetensors"} < files


@pytest.mark.slow
def test_a_sharded_recipe_in_bf16_equals_data_parallel(launch, mlm, tmp_path):
    """Both read the same micro-batches, so only the order of sums differs. One process has other micro-batches."""
    words = "training.mixed_precision=bf16", "training.max_train_steps=20"
    launchers = {"one": None, "two": PARALLEL, "shards": SHARDED}
    for name, launcher in launchers.items():
        printed = launch("pretrain_mlm", mlm, f"output={tmp_path}/{name}", *words, launcher=launcher).stdout
        assert ("bf16, sharded (FSDP2)" in printed) is (name == "shards")
    one, two, shards = (np.array(losses(tmp_path / name)) for name in launchers)
    assert two[0] == shards[0]
    assert np.abs(two - shards).max() <= 5e-3, "measured 7.8e-4: AdamW enlarges rounding"
    assert np.abs(one - shards).max() <= 5e-3, "measured 7.3e-4"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"FSDP_VERSION": "1"}, "topology: FSDP 1 is not supported; set fsdp_version: 2"),
        ({}, "topology: FSDP 1 is not supported"),  # the default of accelerate's launcher
        ({"FSDP_VERSION": "2"}, "topology: FSDP2 needs connected processes, but the launcher started separate ones"),
    ],
)
def test_unsupported_sharding_is_refused(launch, mlm, tmp_path, monkeypatch, asked, line):
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    for name, value in ({"ACCELERATE_USE_FSDP": "true"} | asked).items():
        monkeypatch.setenv(name, value)
    assert line in launch("pretrain_mlm", mlm, f"output={tmp_path}/none", expect=2).stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_dry_run_with_shards_prints_their_memory(launch, mlm, tmp_path):
    printed = launch("pretrain_mlm", mlm, f"output={tmp_path}/none", "--dry-run", launcher=SHARDED).stdout
    assert "sharded (FSDP2) weights, gradients and optimizer take" in " ".join(printed.split())
    assert "dry run: nothing was trained and nothing written" in printed
