"""Model folders: find one, read it safely, and write one completely or not at all."""

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
from decero.hub import foreign_files
from decero.hub.publish import OTHERS, PICKLES, TOKENIZER, WEIGHTS

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")  # buffers such as position_ids
LINES = ("Hello, world!", "The quick brown fox jumps over 13 lazy dogs.", "naïve café, 東京 2024: ½ ≠ ⅓", "")


def find(source: Path | str) -> Path:
    """Return `source` if it is a folder; else download the hub model of that name.

    Downloads weights, configuration and tokenizer. Raises UserError when it is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{source}: this is a file; give its folder")
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*WEIGHTS, *TOKENIZER, *OTHERS]))
    except (OSError, ValueError) as error:
        siblings = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        near = did_you_mean(folder.name, siblings, "" if folder.parent == Path() else f"{folder.parent}/")
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: no such folder{near}; cannot download it from the hub: {reason}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises UserError when it is missing, damaged or without a model_type."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no model in this folder: there is no config.json")
    return foreign_files.read_config(folder / "config.json")


def read_headers(folder: Path) -> dict[str, str]:
    """Return tensor name -> dtype, as safetensors names it, of all weights.

    Opens no file outside the folder. Raises UserError: no safetensors; an index that names missing files or files
    outside the folder; a truncated file; an adapter.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: holds an adapter for another model; merge it into that model first")
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not (folder / names[0]).exists():
        if not index.is_file():
            pickles = [path.name for path in sorted(folder.iterdir()) if path.name.endswith(PICKLES)]
            why = f"; {pickles[0]} is not read, because loading it may run code" if pickles else ""
            raise UserError(f"{folder}: there is no model.safetensors{why} (save_pretrained writes safetensors)")
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: invalid index of weights") from None
    dtypes: dict[str, str] = {}
    for name in names:
        _check_inside(folder, name)
        try:
            with safe_open(folder / name, framework="pt") as file:
                dtypes |= {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder}/{name}: not a complete safetensors file: {error}") from None
    for key, dtype in dtypes.items():
        if dtype not in DTYPES and dtype not in INTEGERS:
            raise UserError(f"{folder}: tensor {key} is stored as {dtype}, which decero does not read")
    return dtypes


def _check_inside(folder: Path, name: str) -> None:
    """Raise UserError unless the weights file is in its folder or, in the hub's cache, a link to its `blobs`."""
    home = folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if Path(name).name != name or (folder / name).resolve().parent not in allowed:
        raise UserError(f"{folder}: the weights {name} are outside the folder and are not read")


def common_dtype(dtypes: dict[str, str]) -> torch.dtype:
    """Return the smallest dtype that holds every stored value exactly."""
    kinds = {DTYPES[dtype] for dtype in dtypes.values() if dtype in DTYPES}
    result = kinds.pop() if kinds else torch.float32
    for kind in kinds:
        result = torch.promote_types(result, kind)
    return result


@contextmanager
def claimed(out: Path | str) -> Iterator[Path]:
    """Give a temporary folder; on success rename it to `out`, on failure delete it.

    Raises UserError when `out` exists and is not empty.
    """
    out = Path(out)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"{out}: already exists; give another folder")
    partial = out.absolute().with_name(f".{out.absolute().name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_tokenizer(source: Path, target: Path) -> int | None:
    """Save the tokenizer of `source` in `target` so that AutoTokenizer finds it for any model.

    Returns the number of test lines that both encode equally, None without a tokenizer. Raises UserError when it does
    not load without custom code, or encodes differently after saving.
    """
    if not any(any(source.glob(pattern)) for pattern in TOKENIZER):
        return None
    tokenizer = _load_tokenizer(source)
    tokenizer.save_pretrained(target)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # unknown to transformers 4
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # known to transformers 4 and 5
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
        raise UserError(f"{folder}: cannot load its tokenizer: {str(error).strip().splitlines()[0]}") from error
