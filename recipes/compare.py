"""Which model to ship: contenders x seeds x label budgets under one recipe, judged with error bars.

accelerate launch recipes/compare.py configs/compare/quickstart.yaml [key.sub=value ...] [--dry-run]
"""

from dataclasses import replace

from decero.config.comparison import Compare
from decero.errors import run_script


def main():
    config = Compare.from_cli()
    from decero.comparison.best_model import note_seeds, push_lines
    from decero.comparison.collect import check_failures, facts, failures, label_scores, verdict_of  # late: --help
    from decero.comparison.execute import execute
    from decero.comparison.plan import make_plan, notes_on
    from decero.comparison.pooling import pool_folds
    from decero.comparison.time_needed import time_needed
    from decero.comparison.tuning import tunings
    from decero.evaluation.report import write_report
    from decero.training.records import finished, write_result
    from decero.training.runs import open_run

    plan = make_plan(config, keep_best=True)  # every run's settings, checked before the folder is claimed
    with open_run(config) as run:
        notes = notes_on(config)
        if config.dry_run:
            names = [each.name for each in (*plan.trials, *plan.runs)]
            run.print(config.to_yaml(), *names, *notes, plan.size)
            return run.print(*time_needed(plan, run), "dry run: nothing was trained or written")
        if (record := finished(config)) and record.get("failed", 1) == 0:  # failed runs are tried again
            return run.print(record["table"], *record["advice"], *record["sentences"], *notes)

        run.print(*notes)
        execute(plan, run)
        pool_folds(plan, run)

        verdict, runs = verdict_of(plan)
        verdict = replace(verdict, advice=(*verdict.advice, *push_lines(plan, verdict)))
        notes += failures(runs)
        tuning = tunings(plan)
        if run.is_main:
            note_seeds(plan, verdict)
            known, labels = facts(plan), label_scores(plan)
            write_report(
                config.folder, config.title, verdict, runs, facts=known, tuning=tuning, labels=labels, notes=notes
            )
        record = verdict.record() | {"seed": config.seed, "runs": len(runs), "notes": notes}
        record |= {"tuning": [each.record() for each in tuning]} if tuning else {}
        failed = sum(r.status != "ok" for r in runs) + sum(s is None for each in tuning for _, s in each.tried)
        record |= {"failed": failed, "wall_time_s": sum(r.wall_time_s for r in runs)}
        write_result(config.folder, run.accelerator, record)
        lines = *record["advice"], *record["sentences"], *notes
        run.print("", record["table"], "", *lines, "", f"{config.folder}/report.html")
    check_failures(runs, config.reference)


if __name__ == "__main__":
    run_script(main)
