"""Folders inside installed packages: models and text that a plain `pip install` brings."""

import importlib.util
import os

from decero.errors import UserError


def resolve_package_path(name: str) -> str:
    """`package:PACKAGE/PATH` as the folder in that installed package, which is not imported; other names unchanged."""
    if not name.startswith("package:"):
        return name
    package, _, inside = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: package {package} is not installed; pip install {package.replace('_', '-')}")
    folder = spec.submodule_search_locations[0]
    if not os.path.isdir(os.path.join(folder, inside)):
        raise UserError(f"{name}: package {package} has no folder {inside}; look in {folder}")
    return os.path.join(folder, inside)
