"""Put recipes/ and configs/ into the package. Everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copy recipes/ and configs/ to decero/recipes and decero/configs of a wheel.

    An editable installation finds them in the repository.
    """

    def run(self):
        super().run()
        for folder in () if self.editable_mode else ("recipes", "configs"):
            target = Path(self.build_lib, "decero", folder)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildPy})
