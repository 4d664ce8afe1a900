"""Which model to ship: contenders x seeds x label budgets under one recipe, judged with error bars.

accelerate launch recipes/compare.py configs/compare/quickstart.yaml [key.sub=value ...] [--dry-run]
"""

from decero.config.comparison import Compare
from decero.errors import UserError, run_script


def main():
    config = Compare.from_cli()
    from decero.comparison.contenders import cells, facts, metric_of, read_runs, run_cell  # --help needs no libraries
    from decero.evaluation.report import write_report
    from decero.evaluation.verdict import judge
    from decero.training.records import finished, write_result
    from decero.training.runs import open_run

    with open_run(config) as run:
        table = cells(config)  # every run's settings, checked before the first one starts
        if config.dry_run:
            names = [cell.name for cell in table]
            return run.print(config.to_yaml(), *names, f"{len(table)} runs", "dry run: nothing was trained or written")
        if (record := finished(config)) and not record["failed"]:  # failed runs are tried again
            return run.print(record["table"], *record["sentences"])

        for number, cell in enumerate(table, start=1):
            outcome = run_cell(cell, run.accelerator)
            run.print(f"[{number}/{len(table)}] {cell.name}: {outcome}")

        runs = read_runs(table)
        verdict = judge(runs, metric=metric_of(config), reference=config.reference, seed=config.seed)
        if run.is_main:
            write_report(config.folder, config.title, verdict, runs, facts=facts(config, table))
        record = verdict.record() | {"seed": config.seed, "runs": len(runs)}
        record |= {"failed": sum(r.status != "ok" for r in runs), "wall_time_s": sum(r.wall_time_s for r in runs)}
        write_result(config.folder, run.accelerator, record)
        run.print("", record["table"], "", *record["sentences"], "", f"{config.folder}/report.html")
    if not any(each.status == "ok" for each in runs if each.contender == config.reference):
        raise UserError(f"every run of the reference {config.reference} failed; the first: {runs[0].error}")


if __name__ == "__main__":
    run_script(main)
