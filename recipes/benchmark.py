"""What our tricks save here, in training and decoding: ours, transformers as its examples run it, and the same tuned.

python recipes/benchmark.py configs/benchmark/quick.yaml [key.sub=value ...] [--dry-run]
"""

import sys
import time
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from decero.benchmark.arms import build_arms, check_equal
from decero.benchmark.batches import FORMULA, describe, make_texts
from decero.benchmark.decoding import build_decoders, check_equal_answers, sources_of
from decero.benchmark.measure import interleaved, matmul_peak, synchronize
from decero.benchmark.memory import measure_memory
from decero.benchmark.report import arm_table, bars, line_of, parameters_of, ratio_table, summarise
from decero.benchmark.works import Benchmark, build_pair
from decero.errors import UserError, run
from decero.evaluation.figures import render
from decero.training.run import finished, start, write_result


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

    started, found, times = time.perf_counter(), {}, {}
    for name, work in works.items():  # every one is built before the first is timed
        ours, stock = build_pair(name, work, seed)
        found[name] = describe(work, make_texts(name, work, ours.config, seed), ours, seed)
        accelerator.print(line_of(name, work, found[name]))
        for arm in work.arms() if config.dry_run else ():
            print(parameters_of(arm, ours if arm == "ours" else stock))
        del ours, stock
    if config.dry_run:
        return print("dry run: nothing was timed and nothing written")

    peaks = matmul_peak(device)
    trained = {name: work for name, work in works.items() if work.kind != "decode" and config.memory}
    total = sum(
        (config.warmup_rounds + work.rounds + (name in trained)) * len(work.arms()) for name, work in works.items()
    )
    bar = tqdm(
        total=total, unit="arm", dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )  # fmt: skip
    for name, work in works.items():
        bar.set_description(name, refresh=False)
        pair = build_pair(name, work, seed)
        texts = make_texts(name, work, pair[0].config, seed)
        arms: dict[str, Any]
        if work.kind == "decode":
            arms = build_decoders(work, pair, sources_of(texts), device, seed)
            found[name]["equal"] = check_equal_answers(name, work, arms)
        else:
            arms = build_arms(work, pair, texts, device, seed, work.arms())
            found[name]["loss"] = check_equal(name, arms)
        found[name]["parameters"] = {arm: each.model.num_parameters() for arm, each in arms.items()}
        found[name]["says"] = {arm: each.says for arm, each in arms.items()}
        times[name] = interleaved(
            arms, work.rounds, config.warmup_rounds, seed, synchronize=lambda: synchronize(device), tick=bar.update
        )
        found[name]["load_average"] = psutil.getloadavg()[0]  # above the number of cores: others were at work
        del pair, arms
    bar.set_description("memory", refresh=False)
    memory = measure_memory(trained, device, seed, tick=bar.update) if trained else {}
    bar.close()
    for name, work in works.items():
        found[name] = summarise(work, times[name], memory.get(name, {}), found[name], peaks)
    table, details = ratio_table(found, works), arm_table(found, peaks)
    output = Path(config.output)
    (output / "benchmark.md").write_text(f"{table}\n\n{details}\n", encoding="utf-8")
    for kind in ("png", "svg"):
        (output / f"speed.{kind}").write_bytes(render(bars(found), kind))
    metric = {f"{name}, over {arm}": r["median"] for name, f in found.items() for arm, r in f["ratios"].items()}
    record = {"metric": metric, "table": table, "arm_table": details, "works": found, "matmul_peak": peaks}
    record |= {"formula": FORMULA, "seed": seed, "wall_time_s": time.perf_counter() - started}
    write_result(output, accelerator, record)
    accelerator.print(f"\n{table}\n\n{details}\n\n{output}/benchmark.md, {output}/speed.png")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
