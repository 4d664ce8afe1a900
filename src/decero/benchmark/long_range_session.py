"""Do the long-range experiments: plan, run or resume, and write the page."""

import sys
from typing import Any

from tqdm.auto import tqdm

from decero.benchmark.claims import judge
from decero.benchmark.gradient_distance import gradient_runs
from decero.benchmark.length_speed import sequential_depth, speed_runs
from decero.benchmark.long_range_page import draw, page, verdict_table
from decero.benchmark.side_by_side import at_once
from decero.benchmark.synthetic_runs import build_arm, scored_runs, task_of
from decero.config.long_range import LongRange
from decero.evaluation.figures import render
from decero.training.records import read_record, write_json
from decero.training.runs import Run


def describe_experiments(run: Run) -> list[str]:
    """Build every arm of every experiment once, so that mistakes show before the first run. Returns a line for each."""
    lines = []
    for name, work in run.config.experiments().items():
        length = work.lengths[-1] if name == "speed" else work.length
        vocab_size = work.vocab_size if name == "speed" else task_of(name, work).vocab_size
        for arm, shape in run.config.shapes(work).items():
            model = build_arm(arm, shape, vocab_size, length, run.seed)
            depth = sequential_depth(model, length)
            waits = "" if depth is None else f", sequential depth {depth:,} at {length} tokens"
            lines.append(f"{name}, {arm}: {sum(p.numel() for p in model.parameters()):,} parameters{waits}")
    if (count := at_once(run)) > 1 and set(run.config.experiments()) != {"speed"}:
        lines.append(f"trainings: {count} at a time, each in a process of its own")
    return lines


def units_of(config: LongRange) -> dict[str, int]:
    """Return how many units of the progress bar each experiment has."""
    units = {}
    for name, work in config.experiments().items():
        arms = len(config.shapes(work))
        if name == "speed":
            units[name] = len(work.lengths) * arms * (work.rounds + 1)
        else:
            units[name] = arms * (len(work.seeds) + (len(getattr(work, "learning_rates", [0])) - 1))
    return units


def do_experiments(run: Run) -> dict[str, Any]:
    """Do what is not done yet; return name -> part of result.json. A stopped one goes on where it stopped."""
    config, parts = run.config, {}
    units = units_of(config)
    shown: Any = {"unit": "part", "dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 15}
    with tqdm(total=sum(units.values()), **shown) as bar:
        for name, work in config.experiments().items():
            bar.set_description(name, refresh=False)
            done = bar.n

            def tick(line: str = "") -> None:
                bar.update()
                if line:
                    bar.write(line)

            if name == "speed":
                parts[name] = speed_runs(run, work, tick)
            elif name == "gradients":
                parts[name] = gradient_runs(run, work, tick)
            else:
                parts[name] = scored_runs(run, name, work, tick)
            bar.update(done + units[name] - bar.n)  # what was measured before
            files = (run.output / name).rglob("result.json")
            # One after another; those that went on at the same time took less together.
            parts[name]["wall_time_s"] = sum(read_record(file.parent)["took_s"] for file in files)
    return parts


def write_page(run: Run, parts: dict[str, Any]) -> dict[str, Any]:
    """Write long_range.md and a picture for each experiment. Returns the content of result.json."""
    device = run.accelerator.device.type
    claims = [judge(name, part, run.config.reference, device) for name, part in parts.items()]
    text = page(parts, claims, device)
    (run.output / "long_range.md").write_text(text, encoding="utf-8")
    for name, part in parts.items():
        figure = draw(name, part, list(run.config.arms))
        for kind in ("png", "svg"):
            (run.output / f"{name}.{kind}").write_bytes(render(figure, kind))
        write_json(run.output / name / "part.json", part)
    record = {"metric": {c.experiment: c.verdict for c in claims}, "claims": [c.record() for c in claims]}
    wall_time = sum(part["wall_time_s"] for part in parts.values())
    return record | {"table": verdict_table(claims), "experiments": parts, "seed": run.seed, "wall_time_s": wall_time}
