"""Add the command `decero recipe`: list, copy and run the recipes and configurations that came with decero."""

import argparse
import ast
import re
import runpy
import sys
from pathlib import Path

from decero.errors import UserError, did_you_mean
from decero.files import shipped, write_whole


def add_recipe(commands) -> None:
    """Add `decero recipe [NAME [CONFIG ...]]`."""
    parser = commands.add_parser("recipe", help="list, copy and run the recipes that train", allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe, such as pretrain_mlm; none: list them")
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="CONFIG",
        help="configuration, then key.sub=value and options of the recipe; none: list the configurations. "
        "configs/... that is not here is taken from decero",
    )
    parser.add_argument(
        "--copy", metavar="FOLDER", help="copy the recipe, its configurations and what they name; runs nothing"
    )
    parser.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> None:
    name, words, folder = arguments.name, list(arguments.words), arguments.copy
    recipes = {path.stem: path for path in sorted(shipped("recipes").glob("*.py"))}
    if name is None:
        if folder is not None:
            raise UserError(f"decero recipe --copy {folder}: give the name of a recipe, too  (all: decero recipe)")
        return _list_recipes(recipes)
    name = Path(name).stem if name.startswith("recipes/") else name
    if name not in recipes:
        near = did_you_mean(name, recipes) or "  (all: decero recipe)"
        raise UserError(f"decero recipe: unknown recipe {name}{near}")
    if words[:1] and words[0].partition("=")[0] == "--copy":  # behind the name, argparse leaves it to the recipe
        folder = words.pop(0).partition("=")[2] or (words.pop(0) if words else "")
    if folder is not None:
        if not folder or words:
            raise UserError(f"decero recipe {name} --copy FOLDER: give one folder, and nothing else")
        return _copy(recipes[name], Path(folder).expanduser())
    if not words:
        return _list_configs(recipes[name])
    sys.argv = [str(recipes[name]), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _list_recipes(recipes: dict[str, Path]) -> None:
    width = max(map(len, recipes))
    for name, path in recipes.items():
        print(f"{name:<{width}}  {_headline(path)}")
    print("\nconfigurations of one: decero recipe NAME; run it: decero recipe NAME CONFIG [key.sub=value ...]")


def _list_configs(recipe: Path) -> None:
    print(f"{_headline(recipe)}\n")
    home = shipped("configs").parent
    own = list(filter(is_of_run, configs_of(recipe)))
    width = max(len(str(name)) for name in own)
    for name in own:
        first = (home / name).read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name!s:<{width}}  {first.removeprefix('#').strip()}")
    print(f"\nrun one:  decero recipe {recipe.stem} {easiest(own)} [key.sub=value ...]")
    print(f"settings: decero recipe {recipe.stem} --help")
    print(f"copy all: decero recipe {recipe.stem} --copy FOLDER")


def _headline(recipe: Path) -> str:
    docstring = ast.get_docstring(ast.parse(recipe.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def configs_of(recipe: Path) -> list[Path]:
    """Return `configs/KIND/NAME.yaml` of each configuration that names a recipe in its comments, sorted."""
    home = shipped("configs").parent
    named = re.compile(rf"^#.*\brecipes/{recipe.name}\b", flags=re.M)
    found = (path for path in (home / "configs").rglob("*.yaml") if named.search(path.read_text(encoding="utf-8")))
    return sorted(path.relative_to(home) for path in found)


def is_of_run(name: Path) -> bool:
    """Tell whether a configuration is that of a run, not of a model or of the launcher."""
    return name.parts[1] not in ("model", "accelerate")


def _copy(recipe: Path, folder: Path) -> None:
    """Copy a recipe, the configurations that name it, those that these name, their recipes, and the launcher's files.

    They lie in the folder as in the repository, so every command of the documentation works there.

    Raises UserError for a file that is there and differs; then nothing is written.
    """
    home = shipped("configs").parent
    own = configs_of(recipe)
    launchers = (path.relative_to(home) for path in (home / "configs" / "accelerate").glob("*.yaml"))
    named = with_named(home, [Path("recipes", recipe.name), *own])
    names = sorted({*named, *launchers}, key=lambda name: (name.parts[0] != "recipes", name))
    texts = {folder / name: (home / name).read_bytes() for name in names}
    new = []
    for path, content in texts.items():
        if not path.exists():
            new.append(path)
        elif not path.is_file() or path.read_bytes() != content:
            raise UserError(f"{path}: is there already, and differs; give another folder, or move it away")
    written: list[Path] = []
    try:
        for path in new:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, texts[path])
            written.append(path)
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for name in names:
        print(folder / name)
    print(f"\nrun it: cd {folder} && python recipes/{recipe.name} {easiest(own)}")


def easiest(names: list[Path]) -> Path:
    """Return the configuration to run first: that of the quickstart, whose data come with a package, else any."""
    own = list(filter(is_of_run, names))
    return next((name for name in own if name.stem.endswith("quickstart")), own[0])


def with_named(home: Path, names: list[Path]) -> list[Path]:
    """Return files, and the configurations and recipes that they name, directly or not. home: the folder of configs/.

    The comments of a model name recipes as examples, so these are not followed.
    """
    found, left = [], list(names)
    while left:
        name = left.pop()
        found.append(name)
        text = (home / name).read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w/.-])configs/[\w/.-]+\.yaml", text)
        named += re.findall(r"\brecipes/\w+\.py\b", text) if name.parts[0] == "configs" and is_of_run(name) else []
        for each in map(Path, named):
            if each not in (*found, *left) and (home / each).is_file():
                left.append(each)
    return found
