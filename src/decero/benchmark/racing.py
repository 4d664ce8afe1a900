"""Run a race: the stock recipe to its end, then everything else until its validation loss is reached."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm.auto import tqdm

from decero.benchmark.judge import ReferenceStep, validation_rows
from decero.benchmark.race_table import curves, race_table, record_line, summary
from decero.benchmark.racers import Racer, body_parameters, task_of
from decero.config.race import STOCK, RaceSection
from decero.errors import UserError
from decero.evaluation.figures import render
from decero.files import remove_folder
from decero.training.records import commit_of, write_json
from decero.training.runs import Run

Go = Callable[[str, int, Path, Callable[[dict[str, Any]], bool]], dict[str, Any]]


def describe_race(run: Run) -> None:
    """Build every model once and print what races. Raises UserError for a mistake in any of the settings.

    Raises UserError for a model with more parameters than the stock one, tables of embeddings apart.
    """
    race: RaceSection = run.config.race
    most = None
    for name in run.config.racing():
        task = task_of(race, name, run.seed, str(run.output))
        model = task.build_model()
        body = body_parameters(model)
        most = body if most is None else most
        if body > most:
            raise UserError(
                f"{race.place(name)}: {body:,} parameters without embeddings, and the stock model has {most:,}; a race "
                "is between models of one size, so make it smaller"
            )
        sizes = f"{model.num_parameters():,} parameters, {body:,} without embeddings"
        changed = race.stock_variants.get(name) or race.candidates.get(name) or {}
        settings = f"; {', '.join(f'{key} {value}' for key, value in changed.items())}" if changed else ""
        run.print(f"{name}: {type(model).__name__}, {sizes}, {race.planned_steps(name):,} steps at most{settings}")
        if name == STOCK:
            rows = validation_rows(race, task.tokenizer)
            run.print(f"validation: {len(rows):,} rows of {len(rows[0]['input_ids']):,} tokens")


def hold_race(run: Run, go: Go | None = None) -> dict[str, Any]:
    """Hold the race, write race.md, race.png and race.svg, and return the content of result.json.

    Each finished run is saved to runs/NAME-SEED.json, so a stopped race continues after its last run.
    go: (name, seed, folder, ask) -> facts; how one run is done, in a process of its own by default.
    """
    race: RaceSection = run.config.race
    names = run.config.racing()
    go = go or (lambda name, seed, folder, ask: Racer(race, name, seed, folder).follow(ask))
    plan = [(STOCK, seed) for seed in race.seeds]  # its end is the target of the others
    plan += [(name, seed) for seed in race.seeds for name in names if name != STOCK]
    reference, target = ReferenceStep(run.accelerator.device), None
    records: list[dict[str, Any]] = []
    bar = tqdm(
        total=sum(race.planned_steps(name) for name, _ in plan), unit="step", dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )  # fmt: skip
    with bar:
        for number, (name, seed) in enumerate(plan):
            if number == len(race.seeds):
                target = float(np.mean([record["loss"] for record in records]))
            records.append(_one(run, go, reference, bar, name, seed, target))
            if name == STOCK and "error" in records[-1]:
                raise UserError(f"race.stock: seed {seed}: {records[-1]['error']}")
    target = float(np.mean([record["loss"] for record in records if record["name"] == STOCK]))
    found = summary(race, names, records, target)
    table, line = race_table(race, found, target), record_line(race, found, commit_of())
    (run.output / "race.md").write_text(f"{table}\n\n{line}\n", encoding="utf-8")
    for kind in ("png", "svg"):
        (run.output / f"race.{kind}").write_bytes(render(curves(race, records, target), kind))
    metric = {name: each["times_as_fast"]["mean"] for name, each in found.items() if each["times_as_fast"]}
    return {
        "metric": metric, "table": table, "record_line": line, "notes": [line, "", f"{run.output}/race.md, race.png"],
         "target": target, "runs": records, "seed": run.seed,
        "reference_step_s": float(np.median([record["reference_step_s"] for record in records])),
        "wall_time_s": sum(record["seconds"] for record in records),
    }  # fmt: skip


def _one(
    run: Run, go: Go, reference: ReferenceStep, bar: tqdm, name: str, seed: int, target: float | None
) -> dict[str, Any]:
    """Return the record of one run: from its file, or by doing it."""
    race, path = run.config.race, run.output / "runs" / f"{name}-{seed}.json"
    planned = race.planned_steps(name, seed)
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["target"] == target:
            bar.update(planned)
            return record
    curve: list[dict[str, Any]] = []
    before = [reference.seconds()]
    bar.set_description(f"{name}, seed {seed}", refresh=False)

    def ask(evaluated: dict[str, Any]) -> bool:
        """Note an evaluation, and how fast the machine is now. The clock of the run is stopped here."""
        before.append(reference.seconds())
        last = curve[-1] if curve else {"seconds": 0.0, "reference_steps": 0.0, "step": 0}
        spent = (evaluated["seconds"] - last["seconds"]) / (0.5 * (before[-2] + before[-1]))
        curve.append(evaluated | {"reference_steps": last["reference_steps"] + spent})
        bar.update(evaluated["step"] - last["step"])
        bar.set_postfix_str(f"loss {evaluated['loss']:.3f}" + (f" of {target:.3f}" if target else ""), refresh=False)
        return target is None or not evaluated["loss"] <= target

    folder = run.output / "runs" / f"{name}-{seed}"
    remove_folder(folder)
    folder.mkdir(parents=True)
    facts = go(name, seed, folder, ask)
    bar.update(planned - (curve[-1]["step"] if curve else 0))
    end: dict[str, Any] = {"step": 0, "seconds": 0.0, "tokens": 0, "reference_steps": 0.0, "loss": None}
    end |= curve[-1] if curve else {}
    reached = None if target is None else bool(curve) and "error" not in facts and end["loss"] <= target
    record = {"name": name, "seed": seed, "target": target, "reached": reached, **end, **facts, "curve": curve}
    record |= {"reference_step_s": float(np.median(before)), "load_average": psutil.getloadavg()[0]}
    record |= {"date": time.strftime("%Y-%m-%d", time.gmtime())}
    write_json(path, record)
    return record
