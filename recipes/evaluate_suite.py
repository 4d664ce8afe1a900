"""Average several tasks with an interval: the same contenders x tasks x seeds x label budgets.

accelerate launch recipes/evaluate_suite.py configs/evaluate/suite_en.yaml [key.sub=value ...] [--dry-run]
"""

from decero.config.suite import EvaluateSuite
from decero.errors import run_script


def main():
    config = EvaluateSuite.from_cli()
    from decero.comparison.collect import failures, warn_of_failures  # --help needs no libraries
    from decero.comparison.execute import execute
    from decero.comparison.suite_plan import judge_suite, judge_task, make_suite
    from decero.comparison.time_needed import time_needed
    from decero.evaluation.suite_report import write_suite_report
    from decero.training.records import finished, write_result
    from decero.training.runs import open_run

    plans, notes = make_suite(config)  # every run's settings, checked before the folder is claimed
    with open_run(config) as run:
        if config.dry_run:
            run.print(config.to_yaml(), *notes)
            for name, plan in plans.items():
                run.print(f"{name}: {plan.size}, by {plan.metric}", *time_needed(plan, run))
            return run.print("dry run: nothing was trained or written")
        if (record := finished(config)) and record.get("failed", 1) == 0:  # failed runs are tried again
            return run.print(record["table"], *record["sentences"], *notes)

        run.print(*notes)
        judged = {}
        for name, plan in plans.items():
            run.print(f"task {name}: {plan.size}")
            execute(plan, run)
            judged[name] = judge_task(plan, write=run.is_main)

        suite = judge_suite(config, judged)
        runs = {name: each.runs for name, each in judged.items()}
        notes += [f"{name}: {line}" for name, each in runs.items() for line in failures(each)]
        facts = {name: f"{plan.comparison.task}, {plan.comparison.output}/report.html" for name, plan in plans.items()}
        if run.is_main:
            write_suite_report(run.output, config.title, suite, runs, facts, notes)
        everything = [each for own in runs.values() for each in own]
        record = suite.record() | {"seed": config.seed, "runs": len(everything), "notes": notes}
        record |= {"failed": sum(each.status != "ok" for each in everything)}
        record |= {"wall_time_s": sum(each.wall_time_s for each in everything)}
        write_result(run.output, run.accelerator, record)
        run.print("", record["table"], "", *record["sentences"], *notes, "", f"{run.output}/report.html")
    warn_of_failures(everything)


if __name__ == "__main__":
    run_script(main)
