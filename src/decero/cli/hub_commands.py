"""The commands that move a model: push, import, export."""

import argparse
from pathlib import Path


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
    from decero.hub.publish import push

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
    parser.set_defaults(function=_import)


def _import(arguments: argparse.Namespace) -> None:
    from decero.data.packages import resolve_package_path
    from decero.hub.convert import import_model

    import_model(resolve_package_path(arguments.source), arguments.out)


def add_export(commands) -> None:
    """decero export MODEL OUT --to FAMILY"""
    parser = commands.add_parser("export", help="one of decero's own models as a stock model", allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL", help="a folder that holds a model of decero's, or its name on the hub"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not be there yet")
    what = "a family of stock models, such as bert; remote-code; or auto: the first family that fits, else remote-code"
    parser.add_argument("--to", default="auto", metavar="FAMILY", help=what)
    parser.set_defaults(function=_export)


def _export(arguments: argparse.Namespace) -> None:
    from decero.hub.convert import export_model

    export_model(arguments.model, arguments.out, arguments.to)
