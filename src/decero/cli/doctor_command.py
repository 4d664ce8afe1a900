"""decero doctor RUN_OR_CONFIG: a line a check, exit code 0 when nothing is bad, 1 when something is."""

import argparse
import json
import os
import sys
from dataclasses import asdict

from tqdm.auto import tqdm


def add_doctor(commands) -> None:
    """decero doctor RUN_OR_CONFIG"""
    parser = commands.add_parser("doctor", help="what is wrong with a run, before or after it", allow_abbrev=False)
    parser.add_argument(
        "run", metavar="RUN_OR_CONFIG", help="a run's folder, or the configuration of a recipe that trains"
    )
    parser.add_argument("--recipe", metavar="NAME", help="which recipe it is for, where the settings do not tell")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    from decero.doctor.examination import examine, open_run  # every other command starts without all that

    work, bad = open_run(arguments.run, arguments.recipe), False
    for finding in examine(work):
        bad |= finding.severity == "bad"
        said = json.dumps(asdict(finding), ensure_ascii=False) if arguments.json else finding.line()
        try:
            tqdm.write(said, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # who read has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(int(bad))
