"""Which model to ship: contenders x seeds x label budgets under one recipe, judged with error bars.

accelerate launch recipes/compare.py configs/compare/quickstart.yaml [key.sub=value ...] [--dry-run]
"""

from decero.comparison.contenders import Compare, cells, facts, read_runs, run_cell
from decero.errors import UserError, run
from decero.evaluation.report import write_report
from decero.evaluation.verdict import judge
from decero.training.runs import finished, start, write_result


def main():
    config = Compare.from_cli()
    accelerator = start(config, config.training)
    table = cells(config)  # every run's settings, checked before the first one starts
    if config.dry_run:
        print(config.to_yaml())
        print("\n".join(f"{cell.name}" for cell in table))
        return print(f"{len(table)} runs\ndry run: nothing was trained and nothing written")
    if (record := finished(config)) and not record["failed"]:  # failed runs are tried again
        accelerator.print("\n".join([record["table"], *record["sentences"]]))
        return None

    for number, cell in enumerate(table, start=1):
        outcome = run_cell(cell, accelerator)
        accelerator.print(f"[{number}/{len(table)}] {cell.name}: {outcome}")

    runs = read_runs(table)
    verdict = judge(runs, metric=config.main_metric, reference=config.reference, seed=config.seed)
    if accelerator.is_main_process:
        write_report(config.folder, config.title, verdict, runs, facts=facts(config, table))
    means = {f"{c.contender}, {c.budget or 'all'} labels": c.mean if c.n_ok else None for c in verdict.cells}
    record = {"metric": means, "table": verdict.table()}
    record |= {"sentences": verdict.summary() + verdict.sentences(), "seed": config.seed, "runs": len(runs)}
    record |= {"failed": sum(run.status != "ok" for run in runs), "wall_time_s": sum(run.wall_time_s for run in runs)}
    write_result(config.folder, accelerator, record)
    accelerator.print("\n".join(["", record["table"], "", *record["sentences"], "", f"{config.folder}/report.html"]))
    accelerator.end_training()
    if not any(run.status == "ok" for run in runs if run.contender == config.reference):
        raise UserError(f"every run of the reference {config.reference} failed; the first: {runs[0].error}")


if __name__ == "__main__":
    run(main)
