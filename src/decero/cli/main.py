"""The command line: `decero COMMAND ...`. One function a command; a mistake is one line and exit code 2."""

import argparse
import sys
from pathlib import Path

from decero.cli.doctor_command import add_doctor
from decero.cli.text_commands import COMMANDS as TEXT_COMMANDS
from decero.data.packages import resolve_package_path
from decero.errors import UserError, did_you_mean, run_script
from decero.hub.convert import export_model, import_model
from decero.hub.families import FAMILIES
from decero.hub.publish import push


class Parser(argparse.ArgumentParser):
    """argparse, speaking in our voice."""

    def error(self, message: str):
        raise UserError(f"{self.prog}: {message}  (all of it: {self.prog} --help)")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `decero` and of `python -m decero`."""
    run_script(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> None:
    parser = Parser(prog="decero", description="What is done with a model besides training it.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
        near = did_you_mean(argv[0], commands.choices) or f"; there are {', '.join(commands.choices)}"
        raise UserError(f"decero: {argv[0]} is no command{near}")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in commands.choices[arguments.command]._actions for flag in action.option_strings]
        near = did_you_mean(unknown[0].partition("=")[0], flags)
        raise UserError(f"decero {arguments.command}: {unknown[0]} is not understood{near}")
    arguments.function(arguments)


def add_push(commands) -> None:
    """decero push FOLDER REPO_ID"""
    parser = commands.add_parser("push", help="upload a model folder to the hub, with a model card", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder: config.json and safetensors")
    parser.add_argument("repo_id", metavar="REPO_ID", help="where it goes: NAME/MODEL")
    parser.add_argument("--public", action="store_true", help="make a new repository public; private unless given")
    parser.add_argument(
        "--replace", action="store_true", help="overwrite a repository that holds another kind of model"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be sent and send nothing; no token needed"
    )
    parser.set_defaults(function=_push)


def _push(arguments: argparse.Namespace) -> None:
    push(
        arguments.folder,
        arguments.repo_id,
        private=not arguments.public,
        replace=arguments.replace,
        dry_run=arguments.dry_run,
    )


def add_import(commands) -> None:
    """decero import SOURCE OUT"""
    parser = commands.add_parser("import", help="a stock model as one of decero's own", allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="a folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not be there yet")
    parser.set_defaults(function=lambda arguments: import_model(resolve_package_path(arguments.source), arguments.out))


def add_export(commands) -> None:
    """decero export MODEL OUT --to FAMILY"""
    parser = commands.add_parser("export", help="one of decero's own models as a stock model", allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL", help="a folder that holds a model of decero's, or its name on the hub"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not be there yet")
    families = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    what = f"{families}; remote-code; or auto: the first family that can hold it, else remote-code"
    parser.add_argument("--to", default="auto", metavar="FAMILY", help=what)
    parser.set_defaults(function=lambda arguments: export_model(arguments.model, arguments.out, arguments.to))


COMMANDS = (add_push, add_import, add_export, add_doctor, *TEXT_COMMANDS)
