"""Load the model tests of transformers, which only its source archive holds. `make conformance` fetches it."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

NAME = "transformers_tests"
ABSENT = {  # what the archive leaves out: tests of generation, of exporters, of many processes
    "generation.test_utils": "GenerationTesterMixin",
    "exporters.test_export": "ExportTesterMixin",
}


def load_common():
    """Import tests/test_modeling_common.py of the archive that $TRANSFORMERS_TESTS names; skip without it."""
    folder = os.environ.get("TRANSFORMERS_TESTS")
    if not folder:
        pytest.skip("TRANSFORMERS_TESTS names no folder: see `make conformance`", allow_module_level=True)
    package = ModuleType(NAME)
    package.__path__ = [str(Path(folder))]
    sys.modules[NAME] = package
    for name, mixin in ABSENT.items():
        parent = name.partition(".")[0]
        sys.modules.setdefault(f"{NAME}.{parent}", ModuleType(f"{NAME}.{parent}"))
        module = ModuleType(f"{NAME}.{name}")
        setattr(module, mixin, type(mixin, (), {}))
        sys.modules[f"{NAME}.{name}"] = module
    return importlib.import_module(f"{NAME}.test_modeling_common")
