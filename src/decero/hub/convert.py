"""Convert folders of stock models to decero models and back: `decero import`, `decero export`.

Every conversion is checked. An import runs the stock class and the decero class on the same batch. An export is loaded
again with the plain Auto class and compared with the original model: outputs, and tokens written by greedy search.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

import decero.models
from decero.errors import UserError
from decero.execution.model_folder import DTYPES, find, read_config, read_headers
from decero.execution.pretraining_objective import FIELD, HYBRID, PERMUTATION, mark_objective, objective_of
from decero.execution.saving import save_pretrained
from decero.execution.transformers_internals import has_short_cache
from decero.files import check_folder
from decero.hub.card import read_run
from decero.hub.folders import claimed, common_dtype, copy_legal, copy_processor, copy_tokenizer
from decero.hub.forecast_export import find_family
from decero.hub.publish import run_files
from decero.hub.remote_code import check_remote_code, export_remote_code
from decero.hub.stock import family_for, family_of_stock, from_stock, head_of, to_stock
from decero.hub.table import Family
from decero.hub.verification import check_equal, check_greedy

Say = Callable[[str], None]


def import_model(source: Path | str, out: Path | str, say: Say = print) -> Path:
    """Convert the stock model of `source` (a folder or a hub name) to a decero model in `out`. Returns `out`.

    Weights keep their dtype; tokenizer, image processor and generation settings are copied. Code in `source` is never
    run, and pickles are never opened.

    Raises UserError and leaves `out` untouched: a family, option or tensor without counterpart in decero (named); a
    `source` without safetensors, or with its own code; a non-empty `out`.
    """
    with claimed(out) as partial, quiet():
        folder = check_folder(find(source))
        with _naming(source):
            family, head, stock = load_stock(folder, say)
            ours = from_stock(stock)
            if objective_of(stock.config) == PERMUTATION:
                mark_objective(ours.config, PERMUTATION)  # decero fill asks for it
            if ours.can_generate():
                ours.generation_config = stock.generation_config
            ours.save_pretrained(partial)
            copy_tokenizer(folder, partial)
            copy_processor(folder, partial)
            copy_legal(folder, partial)
            say(check_equal(ours, stock, family))
    say(f"{out}: {family.name} {family.heads[head].stock} is now {type(ours).__name__}")
    return Path(out)


def export_model(folder: Path | str, out: Path | str, to: str = "auto", say: Say = print) -> Path:
    """Convert the decero model in `folder` to a stock model in `out`, which needs neither decero nor remote code.

    to: a family; or `auto`, the first family that can hold the model, or remote code if none can; or `remote-code`.
    Weights keep their dtype; tokenizer, generation settings and the run's record are copied.

    Raises UserError and leaves `out` untouched: a configuration field that the family cannot express (named); a
    `folder` without a decero model; a non-empty `out`.
    """
    source = check_folder(find(folder))
    ours = load_ours(source)
    if to == "auto":
        to = _choose_family(ours, say)
    if to == "remote-code":
        export_remote_code(source, out)
        try:
            say(check_remote_code(ours, out))
        except UserError:
            shutil.rmtree(out)
            raise
        say(f"{out}: {type(ours).__name__} with its own code; trust_remote_code=True loads it")
        return Path(out)
    with claimed(out) as partial, quiet():
        with _naming(folder):
            family, head = family_for(to, ours), head_of(ours)
            for note in family.check_export(ours.config, head):
                say(f"dropped: {note}")
            stock = to_stock(ours, to)
            if objective_of(ours.config) == PERMUTATION:
                mark_objective(stock.config, PERMUTATION)
            if _fills_and_generates(ours):
                say(f"dropped: the class that fills holes ({to} has none for a decoder; remote-code keeps it)")
        if stock.can_generate():
            stock.generation_config = deepcopy(ours.generation_config)
            if has_short_cache(stock):
                stock.generation_config.use_cache = False
                say("generation_config.json: use_cache is false, since T5's cache in transformers has too few layers")
        save_pretrained(stock, partial)
        config = read_config(partial) | family.for_4(ours.config)
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, content in run_files(*read_run(source)).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
        by_padding = family.ours == "DeceroDecoder" and head == "ForSequenceClassification"
        checked = copy_tokenizer(source, partial, continues=head == "ForCausalLM", ends=by_padding)
        copy_processor(source, partial)
        copy_legal(source, partial)
        auto: Any = next(a for a, c in decero.models.AUTO_CLASSES[type(ours.config)].items() if c is type(ours))
        auto = getattr(transformers, family.loaders.get(head, auto.__name__))
        again, report = auto.from_pretrained(partial, output_loading_info=True)
        if type(again) is not type(stock):
            raise UserError(f"{auto.__name__} loads it as {type(again).__name__}, not {type(stock).__name__}")
        if "pooling_layer" in family.by_tensors and head == "Model" and not ours.config.pooling_layer:
            say(f"{auto.__name__} adds a pooler with random weights, because the model has none; ignore pooler_output")
            report["missing_keys"] = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
        check_report(report, type(stock).__name__)
        say(check_equal(ours, again, family))
        if ours.can_generate():
            say(check_greedy(ours, again))
        if checked:
            say(checked)
    say(f"{out}: {type(ours).__name__} is now {family.name} {type(stock).__name__}; {auto.__name__} loads it")
    return Path(out)


def load_stock(folder: Path, say: Say = print) -> tuple[Family, str, PreTrainedModel]:
    """Load the stock model of a folder and check every option and tensor.

    Returns its family, the head (the end of the decero class name, such as ForMaskedLM) and the model.
    """
    raw = read_config(folder)
    if raw["model_type"].startswith("decero_"):
        raise UserError("already a decero model")
    if "auto_map" in raw:
        raise UserError(
            "config.json: auto_map names custom code, which is never run; only stock models can be imported"
        )
    if "quantization_config" in raw:
        raise UserError("config.json: quantization_config: the weights are quantized; import the original model")
    if raw.get("position_embedding_type", "absolute") not in ("absolute", "sine"):  # 5 ignores BERT's silently
        raise UserError(
            f"option position_embedding_type={raw['position_embedding_type']!r} has no counterpart in decero"
        )
    family, head = family_of_stock(raw["model_type"], (raw.get("architectures") or [None])[0])
    headers = read_headers(folder)
    with _loading():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for note in family.check_import(config, head):
        say(f"dropped: {note}")
    known = {f.name for f in fields(config)} | {"model_type", "_name_or_path"} | set(family.unread.split())
    known |= {FIELD} if objective_of(config) == PERMUTATION else set()
    if unknown := sorted(set(raw) & set(vars(config)) - known):
        say(f"dropped: {', '.join(unknown)} (the stock class does not read it)")
    pooled = {}
    if "pooling_layer" in family.by_tensors and head == "Model":
        pooled = {"add_pooling_layer": any(name.endswith("pooler.dense.weight") for name in headers)}
    dtype = common_dtype(headers)
    kinds = {DTYPES[kind] for kind in headers.values() if kind in DTYPES}
    if len(kinds) > 1:
        say(f"the file holds {' and '.join(sorted(map(str, kinds)))}; all become {dtype}")
    with _loading():
        stock, report = family.stock_class(head).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **pooled,
        )  # fmt: skip
    unused = sorted(name for name in report["unexpected_keys"] if re.fullmatch(family.left_behind, name))
    check_report(report, type(stock).__name__, unused)
    unused += obsolete_buffers(stock, headers)
    if unused:
        say(f"dropped tensors: {', '.join(unused)}")
    for parameter in stock.parameters():  # transformers loads some of T5's fp16 parameters in fp32
        parameter.data = parameter.data.to(dtype)
    return family, head, stock


def obsolete_buffers(stock: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Return the tensors of a file that transformers ignores silently: buffers of old versions."""
    patterns = [*(stock._keys_to_ignore_on_load_unexpected or ()), r"(^|\.)position_ids$", r"rotary_emb\.inv_freq"]
    loaded = list(stock.state_dict())
    unread = (name for name in names if not any(name.endswith(key) or key.endswith(name) for key in loaded))
    return sorted(name for name in unread if any(re.search(pattern, name) for pattern in patterns))


def load_ours(folder: Path) -> PreTrainedModel:
    """Load a decero model in the class that its config.json names, in the dtype of its file."""
    raw = read_config(folder)
    names = [c.__name__ for classes in decero.models.AUTO_CLASSES.values() for c in classes.values()]
    if not raw["model_type"].startswith("decero_"):
        mend = f"it is a stock model already; to change it, `decero import {folder} OUT` first"
        raise UserError(f"{folder}: holds a {raw['model_type']}, not a decero model; {mend}")
    name = (raw.get("architectures") or [None])[0]
    if name not in names:
        raise UserError(f"{folder}/config.json: unknown architecture {name}; known: {', '.join(names)}")
    dtype = common_dtype(read_headers(folder))
    with _naming(folder), quiet(), _loading():
        model, report = getattr(decero.models, name).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        check_report(report, name)
    return model


def check_report(report: dict[str, Any], class_name: str, expected: Sequence[str] = ()) -> None:
    """Raise UserError at the first tensor that is missing, unexpected, or has a wrong shape."""
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(f"tensor {name} has shape {[*stored]}, but {class_name} needs {[*wanted]}")
    for name in sorted(report["missing_keys"]):
        raise UserError(f"tensor {name} is missing; {class_name} needs it")
    for name in sorted(set(report["unexpected_keys"]) - set(expected)):
        raise UserError(f"unexpected tensor {name}; {class_name} has no such tensor")


def _fills_and_generates(ours: PreTrainedModel) -> bool:
    return objective_of(ours.config) == HYBRID and ours.can_generate()


def _choose_family(ours: PreTrainedModel, say: Say) -> str:
    """Return the first family that can hold the model. If none can, say why and return remote-code."""
    family, reasons = find_family(ours)
    if family is None:
        say("no stock family can hold it: " + ("; ".join(reasons.values()) or "no stock class has its layers"))
    return "remote-code" if family is None else family.name


@contextmanager
def _naming(folder: Path | str) -> Iterator[None]:
    """Prefix the message of a UserError with the folder that it is about."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(str(folder)) else f"{folder}: {message}") from error


@contextmanager
def _loading() -> Iterator[None]:
    """Turn transformers' loading errors into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # models and configurations raise all kinds
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[-1].strip()
        raise UserError(f"transformers cannot load it: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars and tensor reports; decero reports tensors itself."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
