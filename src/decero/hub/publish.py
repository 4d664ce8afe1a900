"""Push a plain Transformers folder to the hub, with a card."""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]
from huggingface_hub.utils import HFValidationError, validate_repo_id
from ruamel.yaml import YAML
from safetensors import SafetensorError, safe_open

from decero.errors import UserError, did_you_mean
from decero.execution.model_folder import ADAPTER, CODE, OTHERS, PICKLES, TOKENIZER, WEIGHTS, read_adapter, read_config
from decero.hub.bias_section import FILE, read_bias
from decero.hub.card import loading, model_card, read_run
from decero.hub.card_metadata import draws, mask_token
from decero.hub.engine_folders import (
    MOST_README_BYTES,
    OF_ENGINES,
    engine_files,
    engine_named,
    engine_of,
    engine_readme,
)
from decero.hub.foreign_files import check_sendable, read_json, read_text

T = TypeVar("T")

SENT = (*WEIGHTS, *ADAPTER, *TOKENIZER, *OTHERS)
NEEDS_DECERO = (
    "note: others need the package decero to load it (pip install decero), as its card says; "
    "decero export {folder} OUT writes a model that they can load without it\n"
)
WAITS = (1, 2, 4)  # seconds before each retry when the hub does not answer


def push(
    folder: Path | str,
    repo_id: str,
    private: bool = True,
    *,
    replace: bool = False,
    dry_run: bool = False,
    license: str | None = None,
    languages: Sequence[str] = (),
) -> None:
    """Upload a model folder as one commit, with a model card; create the repository if needed.

    Sends weights (only safetensors), configuration, tokenizer, remote code and, from the `model` folder of a run, its
    settings and record, as run/config.yaml and run/result.json; a record of bias probes as run/bias.json (`read_bias`).
    The folder of an engine (`decero export --to onnx`) is sent whole, with the README.md that it has (`engine_files`).
    The same commit deletes weights in the repository that this model does not have. The folder is not changed. Pushing
    the same folder again makes no commit. Links are followed only to files that are sent anyway, and in the hub's cache
    (`check_sendable`).

    replace: overwrite a repository that holds another kind of model.
    dry_run: print what would be sent, and send nothing.
    license, languages: for the card, instead of those in the settings of the run and in README.md.

    Raises UserError: a license or a language that the hub does not know; a folder without a model or with a pickle; a
    link to a file elsewhere; a damaged record, settings or README.md; a repo_id that is invalid, or names a dataset, a
    space or another kind of model; no token; a hub that refuses, or still does not answer after `WAITS`.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    engine = engine_of(folder)
    model = engine_files(folder, engine) if engine else model_files(folder)
    config = None
    if "config.json" in model:
        config = read_json(model["config.json"]) if engine else read_config(folder)
    result, settings = read_run(folder)
    base = read_adapter(folder)["base_model_name_or_path"] if ADAPTER[0] in model else None
    bias = None if engine else read_bias(folder, model)
    files: dict[str, Path | bytes] = {**model, **run_files(result, settings)}
    if bias is not None:
        files[FILE] = (json.dumps(bias, indent=1, allow_nan=False) + "\n").encode()
    file = folder / "README.md"
    there = file.is_symlink() or file.exists()
    readme = read_text(check_sendable(file, folder, SENT), MOST_README_BYTES) if there else None

    def card(readme: str | None) -> bytes:
        return model_card(
            repo_id, config, result, settings, readme, base, bias,
            license=license, languages=languages, mask=mask_token(model), draws=draws(model),
        ).encode("utf-8", "replace")  # fmt: skip

    files["README.md"] = engine_readme(file, license, languages) if engine else card(readme)
    note = NEEDS_DECERO.format(folder=folder) if not engine and loading(config) == "decero" else ""
    if dry_run:
        _forecast(folder, repo_id, private, files)
        return print(note, end="")
    token = get_token()
    if token is None:
        raise UserError(f"hub.repo_id: no token to push {folder}; run `hf auth login` or set HF_TOKEN")
    hub = HfApi(token=token)

    def attempt() -> str:
        """Push once. Reads the repository first, so a retry does not repeat what an earlier attempt did."""
        remote = _find(hub, repo_id, _kind(config, engine), replace)
        if remote is None:
            hub.create_repo(repo_id, private=private, exist_ok=True)
            remote = hub.model_info(repo_id)
        names = {file.rfilename for file in remote.siblings or []}
        if readme is None and "README.md" in names:  # a user may have edited it on the hub
            files["README.md"] = card(_remote_text(hub, repo_id, "README.md", remote.sha))
        held = engine_named(names)
        old = (*WEIGHTS, *ADAPTER, *(OF_ENGINES if held else ()), *(() if held == engine else ("config.json",)))
        stale = [name for name in names - set(files) if "/" not in name and any(map(Path(name).match, old))]
        commit = hub.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()]
            + [CommitOperationDelete(name) for name in stale],
            commit_message="Upload model with decero",
        )
        state = "already has these files" if commit.oid == remote.sha else f"now holds {len(files)} files"
        return f"{hub.endpoint}/{repo_id} ({'private' if remote.private else 'public'}) {state}: {_size(files):,} bytes"

    try:
        print(_retry(attempt))
        print(note, end="")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        message = f"{folder} is kept, but {repo_id} could not be pushed: {_reason(error, repo_id)}"
        raise UserError(message.replace(token, "***")) from None  # the error may quote the token


def model_files(folder: Path) -> dict[str, Path]:
    """Return the files of a model, name -> path; for a folder with only a tokenizer, those of the tokenizer.

    Raises UserError: no such folder; neither model nor tokenizer in it; a pickle; truncated or missing weights; a link
    to a file elsewhere; a pipe.
    """
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: no such folder{did_you_mean(folder.name, siblings, f'{folder.parent}/')}")
    present = {path.name: path for path in sorted(folder.iterdir()) if path.is_symlink() or not path.is_dir()}
    for name in present:
        if name.endswith(PICKLES):
            raise UserError(
                f"{folder}/{name} may be a pickle, which can run code when loaded; remove it "
                "(save_pretrained writes safetensors)"
            )
    kinds = (*WEIGHTS, *ADAPTER) if ADAPTER[0] in present else WEIGHTS
    weights = [name for name in present if name.endswith(".safetensors") and any(map(Path(name).match, kinds))]
    has_tokenizer = "tokenizer.json" in present or "tokenizer_config.json" in present
    if not weights and not ("config.json" not in present and has_tokenizer):
        hint = f"; give {folder}/model" if (folder / "model").is_dir() else ""
        raise UserError(f"{folder}: no model in this folder: there is no model.safetensors{hint}")
    if weights and "config.json" not in present:
        raise UserError(f"{folder}: no model in this folder: there is no config.json")
    if "config.json" in present:
        check_sendable(present["config.json"], folder, SENT)
    config = read_config(folder) if weights else {}
    if ADAPTER[0] in present:
        check_sendable(present[ADAPTER[0]], folder, SENT)
        base = read_adapter(folder)["base_model_name_or_path"]
        if Path(base).is_absolute() or base.startswith("package:"):
            raise UserError(
                f"{folder}: an adapter for {base}, which is not on the hub, so others cannot load it; run "
                f"decero merge {folder} OUT, and push OUT"
            )
    wanted = (*SENT, *(CODE if config.get("auto_map") else ()))
    sent = {name: path for name, path in present.items() if any(map(Path(name).match, wanted))}
    for path in sent.values():
        check_sendable(path, folder, wanted)
    _check_weights(folder, weights)
    return sent


def run_files(result: dict[str, Any] | None, settings: dict[str, Any] | None) -> dict[str, bytes]:
    """Return the files for a run's record and settings (from `read_run`) in a pushed or exported model."""
    files = {}
    if result is not None:
        files["run/result.json"] = (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()
    if settings is not None:
        YAML().dump(settings, stream := io.BytesIO())
        files["run/config.yaml"] = stream.getvalue()
    return files


def _check_weights(folder: Path, weights: list[str]) -> None:
    """Raise UserError unless every weights file is complete and every file in the index exists."""
    for name in weights:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise UserError(f"{folder}/{name}: not a complete safetensors file: {error}") from None
    index = folder / "model.safetensors.index.json"
    if index.is_file() and "model.safetensors" not in weights:
        try:
            named = {str(name) for name in read_json(index)["weight_map"].values()}
        except (KeyError, AttributeError):
            raise UserError(f"{index}: invalid index of weights") from None
        if missing := sorted(named - set(weights)):
            raise UserError(f"{folder}: {index.name} names {missing[0]}, which does not exist")


def check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not a repository name: {error}") from None
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} is not a repository name: add the owner, as in YOUR_NAME/{repo_id}")


def _find(hub: HfApi, repo_id: str, kind: str, replace: bool):
    """Return the repository's info, None if it does not exist. Raises UserError if it holds another kind of model."""
    try:
        remote = hub.model_info(repo_id)
    except RepositoryNotFoundError:
        for other in ("dataset", "space"):
            if hub.repo_exists(repo_id, repo_type=other):
                raise UserError(f"{repo_id} is a {other}, not a model; give another REPO_ID") from None
        return None
    names = {file.rfilename for file in remote.siblings or []}
    engine, has_config = engine_named(names), "config.json" in names
    if not replace and (engine or has_config):
        config = json.loads(_remote_text(hub, repo_id, "config.json", remote.sha)) if has_config else None
        if (held := _kind(config, engine)) != kind:
            raise UserError(
                f"{repo_id} holds a {held}, and this is a {kind}; give another REPO_ID, or --replace to overwrite it"
            )
    return remote


def _kind(config: Any, engine: str | None = None) -> str:
    """`bert (BertModel)`, `bert (BertModel) for onnx`. The hub's own may hold anything."""
    if engine:  # CTranslate2's config.json names no type, and a GGUF file needs none
        typed = engine != "gguf" and isinstance(config, dict) and config.get("model_type")
        return f"{_kind(config) if typed else 'model'} for {engine}"
    if config is None:
        return "tokenizer"
    if not isinstance(config, dict):
        return "model with an invalid config.json"
    names = config.get("architectures")
    return " ".join(
        [str(config.get("model_type")), *(f"({name})" for name in (names if isinstance(names, list) else []))]
    )


def _remote_text(hub: HfApi, repo_id: str, name: str, revision: str | None) -> str:
    return Path(hub.hf_hub_download(repo_id, name, revision=revision)).read_text(encoding="utf-8-sig")


def _retry(attempt: Callable[[], T]) -> T:
    """Call `attempt`; while the hub cannot be reached or does not answer, retry after each of `WAITS` seconds."""
    for wait in WAITS:
        try:
            return attempt()
        except (HTTPError, json.JSONDecodeError) as error:  # JSONDecodeError: an HTML page instead of JSON
            status = getattr(getattr(error, "response", None), "status_code", 503)
            if status < 500 and status not in (408, 429):
                raise
            time.sleep(wait)
    return attempt()


def _reason(error: Exception, repo_id: str) -> str:
    if isinstance(error, RuntimeError) and error.__cause__:  # "Error while uploading ..."
        message: Any = f"{error} {error.__cause__}"
    else:
        message = getattr(error, "server_message", None) or error
    status = getattr(getattr(error, "response", None), "status_code", None)
    fix = {
        401: "; the token is not valid: run `hf auth login`",
        403: f"; the token may not write to {repo_id.partition('/')[0]}",
    }
    return f"{f'{status}: ' if status else ''}{message}{fix.get(status or 0, '')}"


def _size(files: dict[str, Path | bytes]) -> int:
    return sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files.values())


def _forecast(folder: Path, repo_id: str, private: bool, files: dict[str, Path | bytes]) -> None:
    print(f"{folder} -> {repo_id} ({'private' if private else 'public'}, unless it exists already)\n")
    for name in files:
        print(f"{_size({name: files[name]}):>15,} bytes  {name}")
    print(f"{_size(files):>15,} bytes  in {len(files)} files\n")
    sent = {name.partition("/")[0] for name in files}
    if unsent := [path.name for path in sorted(folder.iterdir()) if path.name not in sent]:
        print(f"not sent: {', '.join(name if name.isprintable() else ascii(name) for name in unsent)}\n")
    card = files["README.md"]
    assert isinstance(card, bytes)
    print(f"README.md:\n\n{card.decode()}\n\ndry run: nothing was sent")
