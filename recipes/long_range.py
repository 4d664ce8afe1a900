"""Try three claims about Transformers: gradients, speed and long dependencies, against recurrent and other networks.

python recipes/long_range.py configs/long_range/claims.yaml [key.sub=value ...] [--dry-run] [--resume]
"""

from decero.config.long_range import LongRange
from decero.errors import UserError, run_script


def main():
    config = LongRange.from_cli()
    from decero.benchmark.long_range_session import (
        describe_experiments,
        do_experiments,
        units_of,
        write_page,
    )  # late: --help
    from decero.training.records import finished, write_result
    from decero.training.runs import open_run

    with open_run(config) as run:
        if record := finished(config):
            return run.print(record["table"])
        if run.accelerator.num_processes > 1:
            raise UserError("topology: speed is timed in one process; start it with python")
        described = describe_experiments(run)
        if config.dry_run:
            units = ", ".join(f"{name} {count}" for name, count in units_of(config).items())
            return run.print(config.to_yaml(), *described, f"parts: {units}", "dry run: nothing was trained or written")
        run.print(*described)
        parts = do_experiments(run)
        record = write_page(run, parts)
        write_result(run.output, run.accelerator, record)
        run.print("", record["table"], "", f"{run.output}/long_range.md")


if __name__ == "__main__":
    run_script(main)
