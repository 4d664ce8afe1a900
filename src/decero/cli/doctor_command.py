"""Add the command `decero doctor RUN_OR_CONFIG [KEY=VALUE ...]`. It prints one or more lines per check.

The exit code is 1 if any finding is bad, else 0.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from decero.errors import UserError


def add_doctor(commands) -> None:
    """Add `decero doctor RUN_OR_CONFIG`."""
    parser = commands.add_parser("doctor", help="find problems in a run, before or after training", allow_abbrev=False)
    parser.add_argument(
        "run",
        metavar="RUN_OR_CONFIG",
        help="folder of a run or a comparison, or configuration file of such a recipe",
    )
    parser.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help="setting to change in the configuration file, as for a recipe"
    )
    parser.add_argument("--recipe", metavar="NAME", help="recipe of the configuration, if the settings fit several")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    from decero.cli.doctor_comparison import diagnose_comparison, settings_of_comparison
    from decero.doctor.examination import diagnose  # imported late, so that other commands start fast

    for word in arguments.changes:
        if "=" not in word:
            raise UserError(f"decero doctor: {word} is not a setting; write key=value, and give one run at a time")
    bad, compared = False, settings_of_comparison(arguments.run)
    if compared:
        folder = Path(arguments.run) if os.path.isdir(arguments.run) else None
        findings = diagnose_comparison(compared, folder, arguments.recipe, arguments.changes)
    else:
        findings = diagnose(arguments.run, arguments.recipe, arguments.changes)
    for finding in findings:
        bad |= finding.severity == "bad"
        line = json.dumps(asdict(finding), ensure_ascii=False) if arguments.json else finding.line()
        try:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(int(bad))
