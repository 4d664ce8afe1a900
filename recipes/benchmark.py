"""What our tricks save here, in training and decoding: ours, transformers as its examples run it, and the same tuned.

python recipes/benchmark.py configs/benchmark/quick.yaml [key.sub=value ...] [--dry-run]
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from decero.benchmark.arms import check_equal
from decero.benchmark.batches import FORMULA, describe, make_texts
from decero.benchmark.decoding import check_equal_answers
from decero.benchmark.measure import interleaved, matmul_peak
from decero.benchmark.process import memory_of, processes
from decero.benchmark.summary import arm_table, bars, line_of, parameters_of, ratio_table, summarise
from decero.benchmark.workloads import Benchmark, build_pair
from decero.errors import UserError, run
from decero.evaluation.figures import render
from decero.training.runs import finished, start, write_json, write_result


def main():
    config = Benchmark.from_cli()
    accelerator = start(config)
    if record := finished(config):
        return accelerator.print(record["table"])
    if accelerator.num_processes > 1:
        raise UserError("topology: a benchmark is timed in one process; start it with python")
    works, device, seed = config.chosen(), accelerator.device, config.seed
    if config.dry_run:
        print(config.to_yaml())

    found: dict[str, Any] = {}
    for name, work in works.items():  # every one is built before the first is timed
        ours, stock = build_pair(name, work, seed)
        found[name] = describe(work, make_texts(name, work, ours.config, seed), ours, seed)
        accelerator.print(line_of(name, work, found[name]))
        for arm in work.arms() if config.dry_run else ():
            print(parameters_of(arm, ours if arm == "ours" else stock))
        del ours, stock
    if config.dry_run:
        return print("dry run: nothing was timed and nothing written")

    output = Path(config.output)
    parts = {name: output / "works" / f"{name}.json" for name in works}
    done = {name: json.loads(part.read_text(encoding="utf-8")) for name, part in parts.items() if part.is_file()}
    peaks = next((each["matmul_peak"] for each in done.values()), None) or matmul_peak(device)
    rounds = {name: config.warmup_rounds + work.rounds for name, work in works.items()}
    bar = tqdm(
        total=sum(rounds[name] * len(work.arms()) for name, work in works.items()), unit="arm", dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )  # fmt: skip
    for name, work in works.items():
        bar.set_description(name, refresh=False)
        if name in done:  # measured before the run was stopped
            found[name] = done[name]
            bar.update(rounds[name] * len(work.arms()))
            continue
        started, memory, load_average = time.perf_counter(), {}, psutil.getloadavg()[0]
        with processes(name, work, device, seed) as (arms, facts):
            if work.kind == "decode":
                found[name]["equal"] = check_equal_answers(name, work, {arm: f["written"] for arm, f in facts.items()})
            else:
                found[name]["loss"] = {arm: f["loss"] for arm, f in facts.items()}
                check_equal(name, found[name]["loss"], device)
            for key in ("parameters", "says"):
                found[name][key] = {arm: f[key] for arm, f in facts.items()}
            times = interleaved(arms, work.rounds, config.warmup_rounds, seed, tick=bar.update)
            if config.memory and work.kind != "decode":
                memory = memory_of(arms)
        found[name] = summarise(work, times, memory, found[name], peaks)
        found[name] |= {
            "load_average": load_average,
            "matmul_peak": peaks,
            "wall_time_s": time.perf_counter() - started,
        }
        write_json(parts[name], found[name])
    bar.close()
    table, details = ratio_table(found, works), arm_table(found, peaks)
    (output / "benchmark.md").write_text(f"{table}\n\n{details}\n", encoding="utf-8")
    for kind in ("png", "svg"):
        (output / f"speed.{kind}").write_bytes(render(bars(found), kind))
    metric = {f"{name}, over {arm}": r["median"] for name, f in found.items() for arm, r in f["ratios"].items()}
    record = {"metric": metric, "table": table, "arm_table": details, "works": found, "matmul_peak": peaks}
    record |= {"formula": FORMULA, "seed": seed, "wall_time_s": sum(f["wall_time_s"] for f in found.values())}
    write_result(output, accelerator, record)
    accelerator.print(f"\n{table}\n\n{details}\n\n{output}/benchmark.md, {output}/speed.png")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
