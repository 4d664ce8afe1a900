"""`make gpu-check`: a rehearsal on the CPU, and what it says without a GPU."""

import json
import sys

import pytest
import torch
from accelerate import Accelerator

from decero.benchmark import gpu_check
from decero.config.benchmark import Benchmark
from decero.config.devices import device_of
from decero.training.runs import Run

SIZES = {
    "vocab_size": 211,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 41,
}


@pytest.fixture
def tiny(tmp_path):
    model = {"config": "configs/model/bert_base.yaml", "overrides": SIZES}
    work = {"kind": "mlm", "model": model, "stock": "bert", "batch_size": 5, "length": 23, "fill": 0.5, "rounds": 1}
    return Benchmark(output=str(tmp_path / "check"), works={"mlm": work}, tracking={"trackers": []})


@pytest.mark.slow  # its parts are those of tests/recipes/test_benchmark.py
def test_a_rehearsal_writes_the_json_and_the_page(tiny, tmp_path):
    (tmp_path / "check").mkdir()
    run = Run(Accelerator(cpu=True), None, None, tmp_path / "check", config=tiny)
    tests = {"passed": 3, "skipped": 0, "failed": []}
    record = gpu_check.check(run, tests, shapes=((32, 2, False),), tokens=64, repeats=1)
    assert json.loads((tmp_path / "check.json").read_text())["page"] == record["page"]
    assert "CPU (a rehearsal)" in record["page"]
    assert "Tests: 3 passed, 0 skipped" in record["page"]
    assert record["table"] in record["page"]
    assert {r["kernel"] for r in record["kernels"]} == {"unmasked", "sdpa", "matmul"}
    memory = record["memory"]["mlm"]
    assert 0.3 < memory["predicted"] / memory["measured"] < 3


def test_without_a_gpu_it_says_so_and_ends_well(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "configs/benchmark/gpu.yaml", f"output={tmp_path}/check"])
    gpu_check.main()
    assert capsys.readouterr().out.startswith("gpu-check: no GPU here, so nothing was checked")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("driver", "sheet"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090 24 GB"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA L40S", None),
    ],
)
def test_data_sheets_are_found_by_the_name_of_the_driver(driver, sheet):
    found = device_of(driver)
    assert (found and found.name) == sheet


def test_tests_that_fail_are_counted_and_named(monkeypatch, tmp_path):
    cases = '<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>'

    def pytest_writes(command, **_):
        (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return type("Ended", (), {"returncode": 1})

    monkeypatch.setattr(gpu_check.subprocess, "run", pytest_writes)
    assert gpu_check.run_tests(tmp_path / "tests.xml") == {"passed": 1, "skipped": 1, "failed": ["b"]}
