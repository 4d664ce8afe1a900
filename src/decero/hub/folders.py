"""Model folders: where one is read from, what of it may be read, and how one comes to be all at once or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from decero.errors import UserError, did_you_mean
from decero.hub.publish import OTHERS, PICKLES, TOKENIZER, WEIGHTS

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")  # buffers such as position_ids
LINES = ("Hello, world!", "The quick brown fox jumps over 13 lazy dogs.", "naïve café, 東京 2024: ½ ≠ ⅓", "")


def find(source: Path | str) -> Path:
    """The folder that `source` is, or that it names on the hub (of which weights, configuration and tokenizer come).

    Raises UserError when it is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{source}: is a file; give the folder it lies in")
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*WEIGHTS, *TOKENIZER, *OTHERS]))
    except (OSError, ValueError) as error:
        beside = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        near = did_you_mean(folder.name, beside, "" if folder.parent == Path() else f"{folder.parent}/")
        said = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: no such folder{near}; nor can it be had from the hub: {said}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises UserError when it is missing or no JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no model: there is no config.json") from None
    except ValueError as error:
        raise UserError(f"{folder}/config.json: is no JSON: {error}") from None
    if not isinstance(config, dict) or not config.get("model_type"):
        raise UserError(f"{folder}/config.json: names no model_type")
    return config


def read_headers(folder: Path) -> dict[str, str]:
    """Tensor name -> dtype as safetensors writes it, of all weights. Nothing outside the folder is opened.

    Raises UserError: no safetensors, an index that names files outside of the folder or that are not there, a file cut
    short, an adapter.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: holds an adapter to another model; merge it into that model first")
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not (folder / names[0]).exists():
        if not index.is_file():
            pickles = [path.name for path in sorted(folder.iterdir()) if path.name.endswith(PICKLES)]
            why = f"; {pickles[0]} may run code when it is loaded, and is not read" if pickles else ""
            raise UserError(f"{folder}: there is no model.safetensors{why} (save_pretrained writes safetensors)")
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: is no index of weights") from None
    dtypes: dict[str, str] = {}
    for name in names:
        _check_inside(folder, name)
        try:
            with safe_open(folder / name, framework="pt") as file:
                dtypes |= {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder}/{name}: is no whole safetensors file: {error}") from None
    for key, dtype in dtypes.items():
        if dtype not in DTYPES and dtype not in INTEGERS:
            raise UserError(f"{folder}: tensor {key} is stored as {dtype}, which is not read here")
    return dtypes


def _check_inside(folder: Path, name: str) -> None:
    """A weights file lies in its folder, or, as the hub's cache has it, behind a link to the cache's own `blobs`."""
    home = folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if Path(name).name != name or (folder / name).resolve().parent not in allowed:
        raise UserError(f"{folder}: the weights {name} lie outside of the folder, and are not read")


def common_dtype(dtypes: dict[str, str]) -> torch.dtype:
    """The dtype that holds every stored number exactly; of one dtype, that."""
    kinds = {DTYPES[dtype] for dtype in dtypes.values() if dtype in DTYPES}
    result = kinds.pop() if kinds else torch.float32
    for kind in kinds:
        result = torch.promote_types(result, kind)
    return result


@contextmanager
def claimed(out: Path | str) -> Iterator[Path]:
    """A folder to write that becomes `out` when all went well, and vanishes otherwise.

    Raises UserError when `out` is there and not empty.
    """
    out = Path(out)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"{out}: is there already; give another folder")
    partial = out.absolute().with_name(f".{out.absolute().name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_tokenizer(source: Path, target: Path) -> int | None:
    """Save the tokenizer of `source` in `target`, where AutoTokenizer finds it whatever the model is.

    Returns how many lines of text were seen to be encoded equally, None when there is no tokenizer. Raises UserError
    when it cannot be loaded without running code of its own, or encodes differently after saving.
    """
    if not any(any(source.glob(pattern)) for pattern in TOKENIZER):
        return None
    tokenizer = _load_tokenizer(source)
    tokenizer.save_pretrained(target)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # what transformers 4 knows it as, and 5 too
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    again = _load_tokenizer(target)
    for line in LINES:
        if tokenizer(line)["input_ids"] != again(line)["input_ids"]:
            raise UserError(f"{source}: its tokenizer encodes {line!r} differently after saving")
    return len(LINES)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be loaded: {str(error).strip().splitlines()[0]}") from error
