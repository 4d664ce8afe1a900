"""Compare ours with transformers here: time of a step, time to a loss, and where the time of a step goes.

python recipes/benchmark.py configs/benchmark/quick.yaml [key.sub=value ...] [--dry-run]
"""

from decero.config.benchmark import Benchmark
from decero.errors import UserError, run_script


def main():
    config = Benchmark.from_cli()
    from decero.benchmark.session import run_benchmark  # --help needs no libraries
    from decero.training.records import finished, write_result
    from decero.training.runs import open_run

    with open_run(config) as run:
        if record := finished(config):
            return run.print(record["table"])
        if run.accelerator.num_processes > 1:
            raise UserError("topology: a benchmark is timed in one process; start it with python")
        if config.dry_run:
            print(config.to_yaml())
        if record := run_benchmark(run):
            record = write_result(run.output, run.accelerator, record)
            run.print("", record["table"], "", *record["notes"])


if __name__ == "__main__":
    run_script(main)
