"""Check a GPU: run the tests marked `gpu`, time kernels and training, and compare memory with the forecast.

python -m decero.benchmark.gpu_check configs/benchmark/gpu.yaml [key.sub=value ...]

Writes OUTPUT.json and prints one Markdown page. Without a GPU it says so and ends.
"""

import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from decero.benchmark.arms import tuned_objective
from decero.benchmark.batches import make_texts
from decero.benchmark.kernels import kernel_table, packed_kernels
from decero.benchmark.measure import sheet_peak
from decero.benchmark.session import describe_works, measure_works, write_tables
from decero.benchmark.workloads import build_pair
from decero.config.benchmark import Benchmark, Workload
from decero.config.sections import OptimSection
from decero.errors import UserError, run_script
from decero.execution.linear_cross_entropy import items_at_once
from decero.planning.cost import logits_bytes, static_memory
from decero.planning.forecast import saved_activations
from decero.training.records import commit_of, version_of, write_json
from decero.training.runs import Run, open_run

TESTS = Path("tests/gpu")
RECORDED = ("decero", "torch", "transformers", "datasets", "accelerate")


def main() -> None:
    config = Benchmark.from_cli()
    if not torch.cuda.is_available():
        return print("gpu-check: no GPU here, so nothing was checked (torch.cuda.is_available() is false)")
    shutil.rmtree(config.output, ignore_errors=True)  # of an earlier check
    tests = run_tests(Path(f"{config.output}_tests.xml"))
    with open_run(config) as run:
        record = check(run, tests)
    print(record["page"])
    if tests["failed"]:
        raise UserError(f"gpu-check: {len(tests['failed'])} tests failed: {', '.join(tests['failed'])}")


def check(run: Run, tests: dict[str, Any] | None = None, **kernels: Any) -> dict[str, Any]:
    """Measure kernels, workloads and memory; write OUTPUT.json and return its content.

    tests: from `run_tests`, if they were run. kernels: sizes for `packed_kernels`.
    """
    started, works, device = time.perf_counter(), run.config.chosen(), run.accelerator.device
    attention = packed_kernels(device, **kernels)
    found, peaks = measure_works(run, works, describe_works(run, works))
    result = write_tables(run, works, found, peaks)
    forecast = [name for name, work in works.items() if work.kind not in ("decode", "pictures")]  # texts in training
    training = {name: works[name] for name in forecast if run.config.memory}
    memory = {name: predicted_memory(run, name, work) for name, work in training.items()}
    for name, predicted in memory.items():
        measured = found[name]["arms"]["ours"]["memory"]
        predicted["measured"] = measured and measured["held_bytes"] + measured["step_bytes"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (a rehearsal)"
    record = {
        "device": name, "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit_of(),
        "versions": {package: version_of(package) for package in RECORDED}, "sheet_peak": sheet_peak(device),
        "tests": tests, "kernels": attention, "memory": memory, **result, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    record["page"] = page(record)
    write_json(Path(f"{run.output}.json"), record)
    return record


def run_tests(report: Path) -> dict[str, Any]:
    """Run the tests marked `gpu`; return how many passed, were skipped, and the names of those that failed.

    Raises UserError if pytest did not run.
    """
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        str(TESTS),
        f"--junitxml={report}",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--numprocesses", "4"] if find_spec("xdist") else []  # most of the time is compiling
    ended = subprocess.run(command, check=False).returncode
    if ended not in (0, 1):
        raise UserError(f"gpu-check: pytest ended with {ended}; see above (it needs pytest and hypothesis)")
    cases = list(ElementTree.parse(report).iter("testcase"))
    report.unlink()
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = [str(case.get("name")) for case in bad]
    return {"passed": len(cases) - len(bad) - skipped, "skipped": skipped, "failed": failed}


def predicted_memory(run: Run, name: str, work: Workload) -> dict[str, float]:
    """Forecast the peak memory of a step of ours as --dry-run does: bytes by part, and their sum."""
    device = run.accelerator.device
    pair = build_pair(name, work, run.seed)
    ours = pair[0].to(device).train()  # type: ignore[arg-type]
    texts = make_texts(name, work, ours.config, run.seed)
    objective, _ = tuned_objective(work, ours, texts, device, run.seed, ours)
    rows = [row | {"epoch": 0, "index": i} for i, row in enumerate(texts.select(range(work.batch_size)))]
    load = objective.size(objective.collate(rows), work.batch_size)
    static = static_memory(ours, OptimSection(name="adamw"))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        activations = saved_activations(run.accelerator, ours, objective, texts, load)
    parts = {
        "weights, gradients, optimizer": static.total,
        "activations": activations,
        "logits": logits_bytes(ours, load, items_at_once(device)),
    }
    del ours, pair
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return parts | {"predicted": sum(parts.values())}


def page(record: dict[str, Any]) -> str:
    """Return the tables of a check as one Markdown page."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [f"**{record['device']}**, {record['date']}, commit {record['commit']}, {versions}", ""]
    if tests := record["tests"]:
        failed = f"; failed: {', '.join(tests['failed'])}" if tests["failed"] else ""
        lines += [f"Tests: {tests['passed']} passed, {tests['skipped']} skipped{failed}", ""]
    lines += [record["table"], "", record["arm_table"], "", kernel_table(record["kernels"]), ""]
    if record["memory"]:
        lines += ["| work | memory forecast | peak | forecast / peak |", "|:--|--:|--:|--:|"]
        for name, m in record["memory"].items():
            peak = m["measured"]
            cells = ("–", "–") if not peak else (f"{peak / 1e9:.2f} GB", f"{m['predicted'] / peak:.2f}")
            lines.append(f"| {name} | {m['predicted'] / 1e9:.2f} GB | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
