"""Find folders inside installed packages: models and text that `pip install` brings."""

import importlib.util
import os

from decero.errors import UserError


def resolve_package_path(name: str) -> str:
    """Return the folder that `package:PACKAGE/PATH` names; return other names unchanged.

    The package is not imported. Raises UserError when the package is not installed or has no such folder.
    """
    if not name.startswith("package:"):
        return name
    package, _, inside = name.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: package {package} is not installed; pip install {package.replace('_', '-')}")
    folder = spec.submodule_search_locations[0]
    if not os.path.isdir(os.path.join(folder, inside)):
        raise UserError(f"{name}: package {package} has no folder {inside}; look in {folder}")
    return os.path.join(folder, inside)
