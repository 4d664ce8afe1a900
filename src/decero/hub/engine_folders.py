"""Know the folder of an engine, as `decero export --to ENGINE` writes it, and list what a push sends of it.

Nothing is loaded. The names of the files tell the engine. The first bytes of model.bin show that it is not a pickle.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from decero.config.hub_names import check_languages, check_license
from decero.errors import UserError
from decero.execution.model_folder import ADAPTER, PICKLES, WEIGHTS
from decero.files import kind_of
from decero.hub.card import read_card
from decero.hub.foreign_files import check_sendable, read_text

MODULES = "modules.json"  # of sentence-transformers
# Files that make a repository one of an engine's; a push of another model deletes those that it does not have.
OF_ENGINES = ("model.bin", "*vocabulary.*", "head.safetensors", "model.onnx", "model.onnx.data", "model.gguf", MODULES)
MOST_README_BYTES = 1_000_000
NEWEST = 100  # version of CTranslate2's file format; today 6


def engine_named(names: Iterable[str]) -> str | None:
    """Return the engine that the names of a model's files tell, None for a model of transformers."""
    names = {name for name in names if "/" not in name}
    if MODULES in names:
        return "sentence-transformers"
    if any(Path(name).match(pattern) for name in names for pattern in (*WEIGHTS, *ADAPTER)):
        return None
    if "model.bin" in names and any(Path(name).match("*vocabulary.*") for name in names):
        return "ctranslate2"
    if "model.onnx" in names:
        return "onnx"
    return "gguf" if any(name.endswith(".gguf") for name in names) else None


def engine_of(folder: Path) -> str | None:
    """Return the engine whose folder this is, None for another folder. Reads no more than the first bytes."""
    if not folder.is_dir():
        return None
    engine = engine_named(path.name for path in folder.iterdir() if not path.is_dir())
    if engine == "ctranslate2" and not _is_ctranslate2(folder / "model.bin"):
        return None
    if engine == "sentence-transformers" and '"sentence_transformers.' not in read_text(folder / MODULES):
        return None
    return engine


def _is_ctranslate2(path: Path) -> bool:
    """Whether a file begins as CTranslate2's do: a version, and a name such as TransformerSpec. A pickle does not."""
    if kind_of(path) != "a file":
        return False
    with path.open("rb") as file:
        head = file.read(6)
        version, length = struct.unpack("<IH", head) if len(head) == 6 else (0, 0)
        return 0 < version <= NEWEST and file.read(min(length, NEWEST)).endswith(b"Spec\0")


def engine_files(folder: Path, engine: str) -> dict[str, Path]:
    """Return every file of an engine's folder, subfolders too, name -> path. Hidden files and folders are left out.

    Raises UserError: no README.md; a pickle; a link; a pipe.
    """
    if not os.path.lexists(folder / "README.md"):
        raise UserError(f"{folder}: a folder for {engine} without README.md; write one, or use hf upload REPO {folder}")
    files = {}
    for place, folders, names in os.walk(folder):
        for name in folders:
            if (Path(place) / name).is_symlink() and not name.startswith("."):
                raise UserError(f"{Path(place) / name}: this is a link, which is not followed; replace it with a copy")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place) / name
            known = engine == "ctranslate2" and path == folder / "model.bin"
            if name.endswith(PICKLES) and not known:
                raise UserError(f"{path} may be a pickle, which can run code when loaded; remove it")
            files[path.relative_to(folder).as_posix()] = check_sendable(path, folder)
    return files


def engine_readme(path: Path, license: str | None, languages: Sequence[str]) -> bytes:
    """Return the README.md of an engine's folder as it is, but for a license and languages that are given.

    Raises UserError: metadata that is invalid; a license or a language that the hub does not know; no UTF-8.
    """
    readme = read_text(path, MOST_README_BYTES)
    metadata, text = read_card(readme)
    try:
        given = {"license": check_license(license), "language": check_languages(list(languages))}
        given = {name: value for name, value in given.items() if value}
        if given:
            readme = f"---\n{ModelCardData(**(metadata | given)).to_yaml()}\n---\n{text}"
    except (TypeError, ValueError) as error:
        raise UserError(f"the license or the language of the model: {error}") from None
    return readme.encode("utf-8", "replace")
