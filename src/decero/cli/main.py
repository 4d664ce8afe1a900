"""Run the command line `decero COMMAND ...`. A mistake gives one line and exit code 2."""

import argparse
import sys
from importlib.metadata import version

from decero.cli.answer_command import add_answer
from decero.cli.chat_command import add_chat
from decero.cli.data_command import add_data
from decero.cli.demo_command import add_demo
from decero.cli.doctor_command import add_doctor
from decero.cli.draw_command import add_draw
from decero.cli.explain_command import add_explain
from decero.cli.extract_command import add_extract
from decero.cli.hub_commands import add_export, add_import, add_merge, add_push
from decero.cli.inspect_command import add_inspect
from decero.cli.picture_commands import add_classify, add_detect, add_segment
from decero.cli.recipe_command import add_recipe
from decero.cli.score_command import add_score
from decero.cli.text_commands import COMMANDS as TEXT_COMMANDS
from decero.errors import UserError, did_you_mean, run_script


class Parser(argparse.ArgumentParser):
    """Parse arguments, and raise UserError for a mistake."""

    def error(self, message: str):
        raise UserError(f"{self.prog}: {message}  (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> None:
    """Run `decero` or `python -m decero`."""
    run_script(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> None:
    what = "Train, use, check, convert and publish models. Training: decero recipe."
    parser = Parser(prog="decero", description=what, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"decero {version('decero')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
        near = did_you_mean(argv[0], commands.choices) or f"; known: {', '.join(commands.choices)}"
        raise UserError(f"decero: unknown command {argv[0]}{near}")
    arguments, unknown = parser.parse_known_args(argv)
    if hasattr(arguments, "changes"):  # argparse takes no positional words after an option
        arguments.changes += [word for word in unknown if "=" in word and not word.startswith("-")]
        unknown = [word for word in unknown if word not in arguments.changes]
    is_text = "-" not in argv and len(unknown) == 1 and not unknown[0].startswith("-")
    if is_text and getattr(arguments, "text", "") == "-":  # no text was found, for the same reason
        arguments.text = unknown.pop()
    if unknown:
        flags = [flag for action in commands.choices[arguments.command]._actions for flag in action.option_strings]
        near = did_you_mean(unknown[0].partition("=")[0], flags)
        kind = "option" if unknown[0].startswith("-") else "argument"
        raise UserError(f"decero {arguments.command}: unknown {kind} {unknown[0]}{near}")
    arguments.function(arguments)


COMMANDS = (
    add_push, add_import, add_export, add_merge, add_doctor, add_data, *TEXT_COMMANDS,
    add_classify, add_extract, add_answer, add_chat, add_score, add_explain, add_inspect, add_demo,
    add_segment, add_detect, add_draw, add_recipe,
)  # fmt: skip
