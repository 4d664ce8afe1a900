"""Write the demo of a checkpoint as a folder that is a Space of the hub as it stands."""

import re
import shutil
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import decero
from decero.demo.pages import require_gradio
from decero.errors import UserError
from decero.execution.model_folder import OTHERS, TOKENIZER, WEIGHTS, Checkpoint, open_checkpoint
from decero.execution.saving import whole_folder
from decero.files import kind_of
from decero.inference import commands_of

SOURCE = Path(decero.__file__).parent
ROOMS = ("config", "data", "demo", "evaluation", "execution", "explain", "inference", "models")  # what a demo imports
PYTHON = "3.11"
APP = '''"""The page of a model, written by `decero demo`. It runs here and on the hub: python app.py"""

import os
from pathlib import Path

from decero.demo.pages import HOST, build_app, serve

os.chdir(Path(__file__).parent)
app = build_app({model}{options})

if __name__ == "__main__":
    serve(app, host=os.environ.get("GRADIO_SERVER_NAME", HOST))
'''
README = """# {title}

A demo of {what}. It was written by `decero demo`.

| file | what it is |
|---|---|
| `app.py` | the page; `python app.py` runs it |
| `requirements.txt` | the packages that it was tested with |
| `decero/` | the part of decero {version} that it uses |
{files}
"""
LARGE = ("*.safetensors", "*.model", "*.spm", "tokenizer.json")  # files that git keeps in LFS


def write_space(model: str, folder: Path, **loading: Any) -> None:
    """Write a Space. A model in a folder is copied into it, one on the hub is named.

    loading: options of `inference.load`; the page loads with the same ones.

    Raises UserError: a folder that is not empty; an adapter; code of the model that the Space would have to run from
    files beside it; and the errors of `load` before it reads weights. Nothing is written then.
    """
    require_gradio()
    if folder.is_symlink() or ((kind := kind_of(folder)) and (kind != "a folder" or any(folder.iterdir()))):
        raise UserError(f"{folder}: already exists and is not empty; give another folder")
    pins = {name: value for name, value in loading.items() if name != "bf16"}
    commands_of(model, **pins)
    checkpoint = open_checkpoint(model, weights=bool(kind_of(model)) or ":" in model, **pins)
    if checkpoint.adapter is not None:
        raise UserError(f"{model}: an adapter; run decero merge {model} OUT first, and give OUT")
    local = bool(kind_of(model)) or ":" in model
    if local and loading.get("trust_remote_code"):
        raise UserError(
            f"{model}: its own Python code is not copied into a Space; push it, and give its name on the hub"
        )
    title = _title(model)
    options = {name: value for name, value in loading.items() if value}
    with whole_folder(folder) as partial:
        _copy_code(partial / "decero")
        if local:
            _copy_model(checkpoint, partial / "model")
        written = "".join(f", {name}={value!r}" for name, value in options.items())
        app = APP.format(
            title=title.replace("\\", "").replace('"', ""), model=repr("model" if local else model), options=written
        )
        (partial / "app.py").write_text(app, encoding="utf-8")
        (partial / "requirements.txt").write_text(_requirements(checkpoint), encoding="utf-8")
        (partial / "README.md").write_text(_readme(title, model, local), encoding="utf-8")
        lines = [f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE]
        (partial / ".gitattributes").write_text("".join(lines), encoding="utf-8")


def _title(model: str) -> str:
    return model.rstrip("/").removesuffix("/model").rpartition("/")[2] or "demo"


def _copy_code(target: Path) -> None:
    """Copy the rooms that a demo imports, and the modules below them."""
    paths = [path for room in ROOMS for path in (SOURCE / room).rglob("*")]
    for path in sorted([*SOURCE.glob("*.py"), *paths]):
        if path.is_file() and "__pycache__" not in path.parts and path.name != "__main__.py":
            place = target / path.relative_to(SOURCE)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _copy_model(checkpoint: Checkpoint, target: Path) -> None:
    target.mkdir()
    names = {path for pattern in (*WEIGHTS, *TOKENIZER, *OTHERS) for path in checkpoint.folder.glob(pattern)}
    for path in sorted(names):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _requirements(checkpoint: Checkpoint) -> str:
    """Return the packages that decero needs, in the versions that are installed here; the hub installs gradio."""
    needs = [line for line in metadata.requires("decero") or [] if "extra ==" not in line]
    packages = sorted(re.match(r"[\w.-]+", line)[0] for line in needs)  # type: ignore[index]
    if any(any(checkpoint.folder.glob(pattern)) for pattern in ("*.model", "*.spm")):
        packages += ["sentencepiece"]
    return "".join(f"{name}=={metadata.version(name).split('+')[0]}\n" for name in packages)


def _readme(title: str, model: str, local: bool) -> str:
    front = {
        "title": title, "sdk": "gradio", "sdk_version": metadata.version("gradio"), "python_version": PYTHON,
        "app_file": "app.py", "pinned": False,
    } | ({} if local else {"models": [model]})  # fmt: skip
    text = StringIO()
    YAML().dump(front, text)
    what = "the model in `model/`" if local else f"[{model}](https://huggingface.co/{model})"
    files = "| `model/` | weights and tokenizer |" if local else ""
    body = README.format(title=title, what=what, version=decero.__version__, files=files)
    return f"---\n{text.getvalue()}---\n\n{body.rstrip()}\n"
