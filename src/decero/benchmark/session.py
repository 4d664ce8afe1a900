"""Run a benchmark: a race, a profile, forecasts of scale, or timed workloads. Write tables and figures."""

import json
import sys
import time
from functools import partial
from typing import Any

import psutil
from tqdm.auto import tqdm

from decero.benchmark.arms import check_equal
from decero.benchmark.batches import FORMULA, describe, make_texts
from decero.benchmark.decoding import check_equal_answers
from decero.benchmark.measure import interleaved, matmul_peak, sheet_peak
from decero.benchmark.operators import profile_works
from decero.benchmark.process import memory_of, processes
from decero.benchmark.racing import describe_race, hold_race
from decero.benchmark.scale_table import scale_runs
from decero.benchmark.summary import arm_table, bars, line_of, parameters_of, ratio_table, summarise
from decero.benchmark.workloads import build_pair
from decero.config.benchmark import Workload
from decero.evaluation.figures import render
from decero.training.records import write_json
from decero.training.runs import Run

Works = dict[str, Workload]


def run_benchmark(run: Run) -> dict[str, Any] | None:
    """Run the kind of benchmark that the settings describe; return the content of result.json.

    `table` and `notes` are what is printed. A dry run prints what would be timed, and returns None.
    """
    config = run.config
    if config.scale:
        config.forecasts()
        kind = scale_runs
    elif config.race is not None:
        describe_race(run)
        kind = hold_race
    else:
        works = config.chosen()
        found = describe_works(run, works)
        kind = partial(profile_works, works=works, found=found) if config.profile else partial(_time, works, found)
    if not config.dry_run:
        return kind(run)
    run.print("dry run: nothing was timed and nothing written")
    return None


def _time(works: Works, found: dict[str, dict[str, Any]], run: Run) -> dict[str, Any]:
    found, peaks = measure_works(run, works, found)
    record = write_tables(run, works, found, peaks)
    return record | {"notes": [record["arm_table"], "", f"{run.output}/benchmark.md, {run.output}/speed.png"]}


def describe_works(run: Run, works: Works) -> dict[str, dict[str, Any]]:
    """Build and print all workloads before any is timed. Returns name -> facts."""
    found = {}
    for name, work in works.items():
        ours, stock = build_pair(name, work, run.seed)
        found[name] = describe(work, make_texts(name, work, ours.config, run.seed), ours, run.seed)
        run.print(line_of(name, work, found[name]))
        for arm in work.arms() if run.config.dry_run else ():
            print(parameters_of(arm, ours if arm == "ours" else stock))
    return found


def measure_works(run: Run, works: Works, found: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], Any]:
    """Time all workloads without a saved result; return results by name and peak FLOP/s.

    Each finished workload is saved to works/NAME.json, so a stopped benchmark continues where it stopped.
    """
    config, device, seed = run.config, run.accelerator.device, run.seed
    parts = {name: run.output / "works" / f"{name}.json" for name in works}
    done = {name: json.loads(part.read_text(encoding="utf-8")) for name, part in parts.items() if part.is_file()}
    peaks = next((each["matmul_peak"] for each in done.values()), None) or matmul_peak(device)
    rounds = {name: config.warmup_rounds + work.rounds for name, work in works.items()}
    bar = tqdm(
        total=sum(rounds[name] * len(work.arms()) for name, work in works.items()), unit="arm", dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )  # fmt: skip
    with bar:
        for name, work in works.items():
            bar.set_description(name, refresh=False)
            if name in done:
                found[name] = done[name]
                bar.update(rounds[name] * len(work.arms()))
                continue
            started, memory, load_average = time.perf_counter(), {}, psutil.getloadavg()[0]
            with processes(name, work, device, seed) as (arms, facts):
                if work.kind == "decode":
                    written = {arm: each["written"] for arm, each in facts.items()}
                    found[name]["equal"] = check_equal_answers(name, work, written)
                else:
                    found[name]["loss"] = {arm: each["loss"] for arm, each in facts.items()}
                    check_equal(name, found[name]["loss"], device)
                for key in ("parameters", "says"):
                    found[name][key] = {arm: each[key] for arm, each in facts.items()}
                times = interleaved(arms, work.rounds, config.warmup_rounds, seed, tick=bar.update)
                if config.memory and work.kind != "decode":
                    memory = memory_of(arms)
            found[name] = summarise(work, times, memory, found[name], peaks, sheet_peak(device))
            found[name] |= {"load_average": load_average, "matmul_peak": peaks}
            found[name]["wall_time_s"] = time.perf_counter() - started
            write_json(parts[name], found[name])
    return found, peaks


def write_tables(run: Run, works: Works, found: dict[str, Any], peaks: Any) -> dict[str, Any]:
    """Write benchmark.md, speed.png and speed.svg. Returns the content of result.json."""
    table, details = ratio_table(found, works), arm_table(found, peaks)
    (run.output / "benchmark.md").write_text(f"{table}\n\n{details}\n", encoding="utf-8")
    for kind in ("png", "svg"):
        (run.output / f"speed.{kind}").write_bytes(render(bars(found), kind))
    metric = {f"{name}, over {arm}": r["median"] for name, f in found.items() for arm, r in f["ratios"].items()}
    record = {"metric": metric, "table": table, "arm_table": details, "works": found, "matmul_peak": peaks}
    wall_time = sum(each["wall_time_s"] for each in found.values())
    return record | {"formula": FORMULA, "seed": run.seed, "wall_time_s": wall_time}
