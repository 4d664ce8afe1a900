"""What a user installs: the sdist, and the wheel that is built from it, tried in an environment of its own."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from decero.config.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
LINES = ["the bank raised its rate as shares fell", "the team won the match after a late goal"] * 20
BUILD = "from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
SHIPPED = "src/decero", "recipes", "configs"
SHORT = (
    "training.max_train_steps=3", "training.global_batch_size=4", "training.per_device_batch_size=4",
    "model.overrides={hidden_size: 22, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 37}",
    "data.max_length=16", "optim.num_warmup_steps=1", "tracking.trackers=[]",
)  # fmt: skip


def called(words, cwd, **variables):
    """Run a program with nothing of this environment but its large libraries, and return what it printed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=kept | variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of the repository, and the wheel of the sdist."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "repository"  # a build leaves files beside the sources
    called(["git", "clone", "--quiet", "--no-hardlinks", ROOT, copy], folder)
    changed = called(["git", "ls-files", "--modified", "--others", "--exclude-standard"], ROOT).split("\n")
    for name in filter(None, changed):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            (copy / name).write_bytes((ROOT / name).read_bytes())
    called([sys.executable, "-c", BUILD, "build_sdist", folder], copy)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    [source] = (folder / "sdist").iterdir()
    called([sys.executable, "-c", BUILD, "build_wheel", folder], source)
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_holds_the_code_the_recipes_and_the_configs(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        name = next(each for each in names if each.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(name), validate=True)
    kept = called(["git", "ls-files", "--cached", "--others", "--exclude-standard", *SHIPPED], ROOT).splitlines()
    wanted = {path.removeprefix("src/") if path.startswith("src/") else f"decero/{path}" for path in kept}
    assert wanted <= names
    assert {each for each in names if ".dist-info/" not in each} == wanted
    assert (metadata.name, str(metadata.requires_python)) == ("decero", ">=3.11")
    assert metadata.description_content_type == "text/markdown"


@pytest.mark.slow
def test_a_model_is_trained_from_the_wheel_alone(built, tmp_path):
    environment = tmp_path / "environment"
    called([sys.executable, "-m", "venv", "--without-pip", environment], tmp_path)
    python = environment / "bin" / "python"
    site = called([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], tmp_path).strip()
    heavy = sysconfig.get_paths()["purelib"]  # a folder named in a .pth: editable installations in it do not count
    Path(site, "heavy.pth").write_text(f"{heavy}\n")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", built[1]]
    called([sys.executable, "-m", "pip", "--python", python, *install], tmp_path)

    home = tmp_path / "home"
    home.mkdir()
    (home / "texts.txt").write_text("\n".join(LINES))
    decero = environment / "bin" / "decero"
    assert called([decero, "--version"], home).startswith("decero ")
    assert Path(called([python, "-c", "import decero; print(decero.__file__)"], home).strip()).is_relative_to(site)
    data = "data.files.train=texts.txt"
    called(
        [decero, "recipe", "train_tokenizer", "configs/tokenizer/quickstart.yaml", data, "tokenizer.vocab_size=90"],
        home,
    )
    called([decero, "recipe", "pretrain_mlm", "configs/pretrain/mlm_quickstart.yaml", data, *SHORT], home)
    run = home / "runs" / "quickstart" / "pretrain"
    assert json.loads((run / "result.json").read_text())["steps"] == 3
    assert (run / "model" / "model.safetensors").is_file()
    assert read_yaml(run / "config.yaml")["model"]["config"] == "configs/model/modernbert_tiny.yaml"
    assert sorted(path.name for path in home.iterdir()) == ["runs", "texts.txt"]


NOTEBOOK = ROOT / "notebooks" / "first_model.ipynb"
FEW = {"STEPS = 2000": "STEPS = 20", "LABELS = 200": "LABELS = 48", "EPOCHS = 8": "EPOCHS = 2"}


def test_the_notebook_has_no_outputs_and_names_what_exists():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert all(code.count(line) == 1 for line in FEW)
    for path in re.findall(r"configs/[\w/]+\.yaml", code):
        assert (ROOT / path).is_file(), path


@pytest.mark.slow
def test_the_notebook_runs_to_its_end_on_a_cpu(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for long, short in FEW.items():
            cell.source = cell.source.replace(long, short)
    program = tmp_path / "bin" / "decero"  # that of these tests, whatever is installed
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m decero "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)
    home = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=home).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert "error:" not in said, said[-3000:]
    assert re.search(r"^test accuracy 0\.\d{3}, [\d,]+ parameters", said, flags=re.M)
    assert "license: apache-2.0" in said
    assert "dry run: nothing was sent" in said
