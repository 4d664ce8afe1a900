"""What our tricks save here, in training and decoding: ours, transformers as its examples run it, and the same tuned.

python recipes/benchmark.py configs/benchmark/quick.yaml [key.sub=value ...] [--dry-run]
"""

from decero.config.benchmark import Benchmark
from decero.errors import UserError, run_script


def main():
    config = Benchmark.from_cli()
    from decero.benchmark.session import describe_works, measure_works, write_tables  # --help needs no libraries
    from decero.training.records import finished, write_result
    from decero.training.runs import open_run

    with open_run(config) as run:
        if record := finished(config):
            return run.print(record["table"])
        if run.accelerator.num_processes > 1:
            raise UserError("topology: a benchmark is timed in one process; start it with python")
        works = config.chosen()
        if config.dry_run:
            print(config.to_yaml())
        described = describe_works(run, works)
        if config.dry_run:
            return run.print("dry run: nothing was timed and nothing written")
        found, peaks = measure_works(run, works, described)
        record = write_tables(run, works, found, peaks)
        write_result(run.output, run.accelerator, record)
        run.print(
            "", record["table"], "", record["arm_table"], "", f"{run.output}/benchmark.md, {run.output}/speed.png"
        )


if __name__ == "__main__":
    run_script(main)
