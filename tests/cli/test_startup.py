"""`--help` and `import decero` import no large library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

ROOT = Path(__file__).parents[2]
LARGE = ["torch", "transformers", "datasets", "accelerate", "pandas", "sklearn", "scipy", "matplotlib"]
REGISTERED = "print(type(transformers.AutoConfig.for_model('decero_encoder')).__name__)"
HELP = """
import io, json, runpy, sys
from contextlib import redirect_stdout
found = {}
for path in PATHS:
    sys.argv, said = [path, "--help"], io.StringIO()
    try:
        with redirect_stdout(said):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, path
    found[path] = [len(said.getvalue()), [name for name in LARGE if name in sys.modules]]
print(json.dumps(found))
"""


def ask(code: str) -> str:
    """Return the output of a new process."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_help_imports_no_large_library():
    paths = [str(path) for path in sorted((ROOT / "recipes").glob("*.py"))] + [str(ROOT / "src/decero/__main__.py")]
    found = json.loads(ask(HELP.replace("PATHS", repr(paths)).replace("LARGE", repr(LARGE))))
    for path in paths:
        length, imported = found[path]
        assert length > 200, path
        assert not imported, f"{path} --help imports {imported}"


def test_importing_decero_imports_no_large_library():
    code = f"import decero, sys; print([name for name in {LARGE} if name in sys.modules])"
    assert ask(code).strip() == "[]"


def test_models_are_registered_if_decero_comes_first():
    names = list(sys.modules)  # in the order of imports
    assert names.index("decero") < names.index("transformers"), "tests/conftest.py imports decero first"
    assert type(AutoConfig.for_model("decero_encoder")).__name__ == "DeceroEncoderConfig"


@pytest.mark.long
def test_models_are_registered_if_transformers_comes_first(server, tmp_path):
    code = "import sys, transformers; assert 'decero' not in sys.modules; import decero; " + REGISTERED
    done = server.run("tests.faults.server:script", [tmp_path, code], bare=True, place=tmp_path)
    assert done.out.strip() == "DeceroEncoderConfig", done.err


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import decero, transformers", "import transformers, decero"])
def test_models_are_registered_in_either_order(first):
    assert ask(f"{first}; {REGISTERED}").strip() == "DeceroEncoderConfig"
