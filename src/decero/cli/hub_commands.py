"""Add the commands that move a model: push, import, export, merge."""

import argparse
from pathlib import Path

from decero.errors import UserError


def add_push(commands) -> None:
    """Add `decero push FOLDER REPO_ID`."""
    parser = commands.add_parser("push", help="upload a model folder to the hub, with a model card", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="model folder with config.json and safetensors")
    parser.add_argument("repo_id", metavar="REPO_ID", help="target repository: NAME/MODEL")
    parser.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    parser.add_argument(
        "--replace", action="store_true", help="overwrite a repository that contains another kind of model"
    )
    parser.add_argument("--license", metavar="NAME", help="license of the model for its card, such as apache-2.0")
    what = "languages of the model, such as es or en,es; es: a Spanish card"
    parser.add_argument("--language", default="", metavar="CODES", help=what)
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files to upload, upload nothing; needs no token"
    )
    parser.set_defaults(function=_push)


def _push(arguments: argparse.Namespace) -> None:
    from decero.config.hub_names import check_languages, check_license
    from decero.hub.publish import push

    try:
        license = check_license(arguments.license)
        languages = check_languages(arguments.language) if arguments.language else []
    except ValueError as error:
        raise UserError(f"decero push: {error}") from None
    push(
        arguments.folder,
        arguments.repo_id,
        private=not arguments.public,
        replace=arguments.replace,
        dry_run=arguments.dry_run,
        license=license,
        languages=languages,
    )


def add_import(commands) -> None:
    """Add `decero import SOURCE OUT`."""
    parser = commands.add_parser("import", help="convert a stock model to a decero model", allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="folder, NAME/MODEL on the hub, or package:NAME/FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist yet")
    parser.set_defaults(function=_import)


def _import(arguments: argparse.Namespace) -> None:
    from decero.data.packages import resolve_package_path
    from decero.hub.convert import import_model

    import_model(resolve_package_path(arguments.source), arguments.out)


def add_export(commands) -> None:
    """Add `decero export MODEL OUT --to FAMILY_OR_ENGINE`."""
    what = "convert a decero model to a stock model, or a model to another engine"
    parser = commands.add_parser("export", help=what, allow_abbrev=False)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of a decero model, for an engine also of a stock one, or its name on the hub",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist yet")
    what = (
        "stock family, such as bert; remote-code; auto: the first family that fits, else remote-code; or an engine: "
        "ctranslate2, onnx, gguf, sentence-transformers"
    )
    parser.add_argument("--to", default="auto", metavar="FAMILY_OR_ENGINE", help=what)
    parser.add_argument(
        "--quantization", metavar="int8", help="of ctranslate2, onnx and gguf: weights of 8 bits, not 32"
    )
    parser.set_defaults(function=_export)


def _export(arguments: argparse.Namespace) -> None:
    from decero.data.packages import resolve_package_path
    from decero.errors import UserError, did_you_mean
    from decero.hub.convert import export_model
    from decero.hub.engines import ENGINES, export_engine
    from decero.hub.families import FAMILIES

    model = resolve_package_path(arguments.model)
    if arguments.to in ENGINES:
        export_engine(model, arguments.out, arguments.to, arguments.quantization)
        return
    names = ["auto", "remote-code", *dict.fromkeys(family.name for family in FAMILIES), *ENGINES]
    if arguments.to not in names:
        near = did_you_mean(arguments.to, names)
        raise UserError(f"--to {arguments.to}: no such family or engine{near} (known: {', '.join(names)})")
    if arguments.quantization is not None:
        raise UserError(f"--quantization is for an engine, not for --to {arguments.to}; see decero export --help")
    export_model(model, arguments.out, arguments.to)


def add_merge(commands) -> None:
    """Add `decero merge RUN_OR_MODEL OUT`."""
    what = "merge a LoRA adapter into its model, as an ordinary checkpoint"
    parser = commands.add_parser("merge", help=what, allow_abbrev=False)
    parser.add_argument(
        "source", metavar="RUN_OR_MODEL", help="folder of a run or of an adapter, or its name on the hub"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist yet")
    parser.set_defaults(function=_merge)


def _merge(arguments: argparse.Namespace) -> None:
    from decero.hub.merge import merge

    merge(arguments.source, arguments.out)
