"""Find the folder of a model and check it before a library reads it: files, weights, and the pins of its code."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from decero.config.sections import COMMIT
from decero.data.packages import resolve_package_path
from decero.errors import UserError, did_you_mean, regular_file
from decero.files import check_folder, check_place, kind_of, sha256_of

# The files of a model. A push sends these and no others; a download asks for these.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "*vocab.json", "vocab.txt", "merges.txt",
    "*.model", "*.spm", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
OTHERS = ("config.json", "generation_config.json", "LICENSE*", "NOTICE*")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # of peft, for the model that adapter_config.json names
TASK_HEADS = {  # task_type of an adapter -> end of the name of its model's class, for heads that most models lack
    "SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}  # fmt: skip
CODE = ("*.py",)  # only if config.json has an auto_map
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")  # buffers such as position_ids


@dataclass(frozen=True)
class Checkpoint:
    """A checked model folder.

    name: as the user gave it. folder: with config.json. code: arguments of every `from_pretrained`: whether its Python
    code may run, and of which commit code of another repository is. adapter: the folder of an adapter, base: that of
    the weights that it adapts.
    """

    name: str
    folder: Path
    code: dict[str, Any] = field(default_factory=dict)
    adapter: Path | None = None
    base: Path | None = None

    @property
    def weights(self) -> Path:
        """The folder with model.safetensors."""
        return self.base or self.folder


def open_checkpoint(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, code_revision: str | None = None,
    weights: bool = True,
) -> Checkpoint:  # fmt: skip
    """Find a checkpoint (hub name, folder or package:NAME/FOLDER), download it, and check it without running it.

    trust_remote_code: allow its Python code; `revision` must then be a commit.
    code_revision: NAME/REPO@COMMIT of code that the checkpoint takes from another repository.
    weights: False reads only the configuration.

    Raises UserError: no such model; no regular file; a config.json that is no JSON; damaged weights; code that is not
    pinned.
    """
    if trust_remote_code and not COMMIT.fullmatch(revision or ""):
        raise UserError(
            f"{name}: remote code needs a pinned commit, and revision {revision} is none; give all 40 digits"
        )
    folder = check_folder(find(resolve_package_path(name), revision, code=trust_remote_code, weights=weights))
    if kind_of(folder / ADAPTER[0]):
        return _open_adapter(name, folder, trust_remote_code, weights)
    read_config(folder)
    if weights:
        read_headers(folder)
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if trust_remote_code:
        code["code_revision"] = _pinned_commit(name, folder, revision, code_revision)
    return Checkpoint(name, folder, code)


def _open_adapter(name: str, folder: Path, trust_remote_code: bool, weights: bool) -> Checkpoint:
    """Find the model that an adapter belongs to. An adapter without a config.json has that of its model."""
    if trust_remote_code:
        raise UserError(f"{name}: an adapter runs no code; merge it with peft, and use the merged model")
    settings = read_adapter(folder)
    base, revision = settings["base_model_name_or_path"], settings.get("revision")
    try:
        found = open_checkpoint(base, revision=revision, weights=weights)
    except UserError as error:
        raise UserError(f"{name}: an adapter for the model {base}: {error}") from None
    if found.adapter is not None:
        raise UserError(f"{name}: an adapter for {base}, which is an adapter itself; run decero merge {base} OUT first")
    if weights:
        _read_header(folder, ADAPTER[1])
    has_own, task = kind_of(folder / "config.json"), str(settings.get("task_type"))
    own = folder if has_own else found.folder
    classes = read_config(own).get("architectures") or []
    if not has_own and task in TASK_HEADS and not any(TASK_HEADS[task] in each for each in classes):
        raise UserError(
            f"{folder}: an adapter of peft with a new head ({task}) needs a config.json with its labels; save "
            "model.config of its model in this folder, or merge it with peft"
        )
    return Checkpoint(name, own, found.code, adapter=folder, base=found.folder)


def read_adapter(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises UserError when it is invalid, no LoRA, or names no model."""
    path = folder / ADAPTER[0]
    settings = read_json_file(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: this is no JSON object")
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {_short(settings.get('peft_type'))}; decero reads LORA only")
    for name in ("base_model_name_or_path", "revision"):
        value = settings.get(name)
        if not (isinstance(value, str) and value) and (name != "revision" or value is not None):
            raise UserError(f"{path}: {name} is {_short(value)}, not a name")
    return settings


def find(source: Path | str, revision: str | None = None, *, code: bool = False, weights: bool = True) -> Path:
    """Return `source` if it is a folder; else download the hub model of that name.

    Downloads configuration and tokenizer; weights and Python code as asked. Raises UserError when it is neither.
    """
    folder = Path(source)
    kind = kind_of(folder)
    if kind == "a folder":
        return folder
    if kind:
        raise UserError(f"{source}: this is {kind}; give {'its' if kind == 'a file' else 'a'} folder")
    check_place(str(source))
    patterns = [*(WEIGHTS if weights else ()), *TOKENIZER, *OTHERS, *ADAPTER, *(CODE if code else ())]
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        siblings = [path.name for path in folder.parent.glob("*/")] if kind_of(folder.parent) == "a folder" else []
        near = did_you_mean(folder.name, siblings, "" if folder.parent == Path() else f"{folder.parent}/")
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: no such folder{near}; cannot download it from the hub: {reason}") from error


def fingerprint_of(checkpoint: Checkpoint) -> str:
    """Return a hash of the files that decide what a model answers: configuration, weights, tokenizer, adapter."""
    digest = hashlib.sha256()
    folders = dict.fromkeys(folder for folder in (checkpoint.folder, checkpoint.adapter, checkpoint.base) if folder)
    for folder in folders:
        patterns = (*WEIGHTS, *TOKENIZER, *ADAPTER, "config.json")
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
            digest.update(path.name.encode())
            digest.update(sha256_of(regular_file(path)).digest())
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises UserError when it is missing, invalid or without a model_type."""
    path = folder / "config.json"
    if not kind_of(path):
        hint = f"; give {folder}/model" if kind_of(folder / "model") == "a folder" else ""
        raise UserError(f"{folder}: no model in this folder: there is no config.json{hint}")
    config = read_json_file(path)
    if not isinstance(config, dict) or not config.get("model_type"):
        raise UserError(f"{path}: no model_type")
    if not isinstance(config["model_type"], str):
        raise UserError(f"{path}: model_type is {_short(config['model_type'])}, not a name such as bert")
    made_by = config.get("architectures")
    if made_by is not None and not (isinstance(made_by, list) and all(isinstance(name, str) for name in made_by)):
        raise UserError(f"{path}: architectures is {_short(made_by)}, not a list of names of classes")
    code = config.get("auto_map") or {}
    if not isinstance(code, dict) or not all(isinstance(value, str | list | dict | None) for value in code.values()):
        raise UserError(f"{path}: auto_map is {_short(code)}, not a mapping such as {{AutoModel: module.Class}}")
    return config


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 80 else f"{text[:80]}..."


def read_json_file(path: Path) -> Any:
    """Read a JSON file. Raises UserError for another kind of file, and for text that is no JSON."""
    try:
        return json.loads(regular_file(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: invalid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: invalid JSON: nested too deeply") from None


def read_headers(folder: Path) -> dict[str, str]:
    """Return tensor name -> dtype, as safetensors names it, of all weights.

    Opens no file outside the folder. Raises UserError: no safetensors; an index that names missing files, files outside
    the folder or tensors that they lack; a truncated file; an adapter.
    """
    if kind_of(folder / "adapter_config.json"):
        raise UserError(f"{folder}: holds an adapter for another model; run decero merge {folder} OUT first")
    names, listed = ["model.safetensors"], {}
    index = folder / "model.safetensors.index.json"
    if not kind_of(folder / names[0]):
        if not kind_of(index):
            pickles = [path.name for path in sorted(folder.iterdir()) if path.name.endswith(PICKLES)]
            why = f"; {pickles[0]} is not read, because loading it may run code" if pickles else ""
            raise UserError(f"{folder}: there is no model.safetensors{why} (save_pretrained writes safetensors)")
        try:
            listed = dict(read_json_file(index)["weight_map"])
            names = sorted(set(listed.values()))
            if not names or not all(isinstance(name, str) for name in names):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{index}: invalid index of weights") from None
    dtypes: dict[str, str] = {}
    for name in names:
        dtypes |= _read_header(folder, name)
    if lacking := sorted(set(listed) - set(dtypes)):
        raise UserError(f"{index}: tensor {lacking[0]} is not in {listed[lacking[0]]}; get these files again")
    for key, dtype in dtypes.items():
        if dtype not in DTYPES and dtype not in INTEGERS:
            raise UserError(f"{folder}: tensor {key} is stored as {dtype}, which decero does not read")
    return dtypes


def _read_header(folder: Path, name: str) -> dict[str, str]:
    """Return tensor name -> dtype of one file. Raises UserError when it is outside the folder, or not complete."""
    _check_inside(folder, name)
    try:
        with safe_open(regular_file(folder / name), framework="pt") as file:
            return {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder}/{name}: not a complete safetensors file: {error}") from None


def _check_inside(folder: Path, name: str) -> None:
    """Raise UserError unless the weights are safetensors in their folder or, in the hub's cache, a link to `blobs`."""
    home = folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if Path(name).name != name or (folder / name).resolve().parent not in allowed:
        raise UserError(f"{folder}: the weights {name} are outside the folder and are not read")
    if not name.endswith(".safetensors"):
        raise UserError(f"{folder}: the weights {name} are not read, because only safetensors run no code")


def _pinned_commit(name: str, folder: Path, revision: str | None, code_revision: str | None) -> str | None:
    """Return the commit of the code that `auto_map` takes from a repository, None for code in the folder itself.

    Raises UserError for code of a repository that is not named and pinned, and for code of several repositories.
    """
    pins = {} if kind_of(resolve_package_path(name)) else {name: revision}
    if code_revision is not None:
        repository, _, commit = code_revision.partition("@")
        if not repository or not COMMIT.fullmatch(commit):
            raise UserError(
                f"{name}: code_revision {code_revision} names no commit; give NAME/REPO@COMMIT, all 40 digits"
            )
        pins[repository] = commit
    used = _code_repositories(folder)
    for repository in sorted(used - set(pins)):
        raise UserError(
            f"{name}: it runs code of another repository, {repository}; read that code, then allow it with "
            f"model.code_revision (--code-revision) {repository}@COMMIT"
        )
    if len(used) > 1:
        raise UserError(f"{name}: its code is in several repositories, {' and '.join(sorted(used))}; use another model")
    return pins[used.pop()] if used else None


def _code_repositories(folder: Path) -> set[str]:
    """Return the repositories that any `auto_map` in the folder names; code in the folder itself has none."""
    named: set[str] = set()

    def walk(value: Any, inside: bool) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                walk(each, inside or key == "auto_map")
        elif isinstance(value, list):
            for each in value:
                walk(each, inside)
        elif inside and isinstance(value, str):
            repository, separator, _ = value.partition("--")
            if not separator and Path(value).is_absolute():
                raise UserError(f"{folder}: auto_map names {value}, which is outside the folder")
            named.update([repository] if separator else [])

    for path in folder.glob("*.json"):
        if "config" in path.name:  # transformers reads config.VERSION.json too
            walk(read_json_file(path), False)
    return named
