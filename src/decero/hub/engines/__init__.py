"""Export a model to another engine: `decero export MODEL OUT --to ctranslate2`. See engine.py for what an engine is."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from decero.errors import UserError
from decero.execution.model_folder import find, read_config, read_headers
from decero.execution.pretrained import one_line
from decero.files import check_folder
from decero.hub.card import model_card, read_run
from decero.hub.convert import check_report, export_model, load_ours, quiet
from decero.hub.engines.engine import Engine, Running
from decero.hub.engines.engine_card import with_engine
from decero.hub.engines.engine_check import check_engine, measure
from decero.hub.engines.to_ctranslate2 import CTRANSLATE2
from decero.hub.engines.to_gguf import GGUF
from decero.hub.engines.to_onnx import ONNX
from decero.hub.engines.to_sentence_transformers import SENTENCE_TRANSFORMERS
from decero.hub.families import FAMILIES
from decero.hub.folders import claimed, copy_legal, copy_tokenizer
from decero.hub.publish import run_files
from decero.hub.stock import family_of_stock, head_of, shape_of
from decero.hub.table import Family

Say = Callable[[str], None]
ENGINES = {engine.name: engine for engine in (CTRANSLATE2, ONNX, GGUF, SENTENCE_TRANSFORMERS)}
README = "README.md"


def export_engine(
    source: Path | str, out: Path | str, to: str, quantization: str | None = None, say: Say = print
) -> Path:
    """Write the model of `source` in `out` for another engine, run it there, and compare. Returns `out`.

    source: a decero model, which leaves through its stock family, or a model of a stock family that the engine reads.
    to: a name of `ENGINES`. quantization: one of the engine's; None keeps fp32.
    The folder gets a README.md with the differences, tokens a second and megabytes.

    Raises UserError and leaves `out` untouched: a package that is missing; a quantization that the engine lacks; a
    family, head or option that it cannot read (named); outputs or texts that differ; a non-empty `out`.
    """
    engine = ENGINES[to]
    check_installed(engine)
    if quantization is not None and quantization not in engine.quantizations:
        known = ", ".join(f"{e.name} ({', '.join(e.quantizations)})" for e in ENGINES.values() if e.quantizations)
        raise UserError(f"--quantization {quantization}: {engine.name} has no such weights; it is for {known}")
    folder = check_folder(find(source))
    with claimed(out) as partial, TemporaryDirectory() as scratch, quiet():
        stock = _stock_folder(folder, source, engine, Path(scratch) / "stock", say)
        model, tokenizer = _load(stock, source, engine)
        if quantization:  # a wrong model hides behind the differences of int8, so fp32 is checked first
            whole = Path(scratch) / "fp32"
            whole.mkdir()
            check_engine(model, _converted(model, tokenizer, whole, source, engine), engine, None)
        running = _converted(model, tokenizer, partial, source, engine, quantization)
        if engine.keeps_tokenizer:
            copy_tokenizer(stock, partial)
        copy_legal(Path(folder), partial)
        checks = check_engine(model, running, engine, quantization)
        for line in checks:
            say(line)
        measured = measure(model, running, partial, stock, engine, checks)
        del running  # it may hold the file open
        record = read_run(folder)
        for name, content in run_files(*record).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
        name = Path(out).resolve().name
        card = model_card(name, read_config(stock), *record)
        (partial / README).write_text(with_engine(card, name, engine, model, quantization, measured), encoding="utf-8")
    before, after = measured.size
    say(f"{before / 1e6:,.1f} MB, now {after / 1e6:,.1f} MB")
    slow, fast = measured.speed
    say(f"{slow:,.0f} tokens a second {measured.what}, now {fast:,.0f}")
    say(f"{out}: {type(model).__name__} for {engine.name}{f', {quantization}' if quantization else ''}; see {README}")
    return Path(out)


def _converted(
    model: Any, tokenizer: Any, folder: Path, source: Path | str, engine: Engine, quantization: str | None = None
) -> Running:
    """Write a model for an engine, and open it there. Raises UserError, one line, if the engine cannot do either."""
    with one_line(f"{source}: {engine.name} cannot convert it"):
        engine.convert(model, tokenizer, folder, quantization)
    with one_line(f"{source}: {engine.name} cannot read what it wrote"):
        return engine.run(folder, model, tokenizer)


def check_installed(engine: Engine) -> None:
    """Raise UserError with the command that installs what the engine needs."""
    for package in engine.packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--to {engine.name} needs the package {package}: pip install 'decero[{engine.name}]'")


def _stock_folder(folder: Path, source: Path | str, engine: Engine, target: Path, say: Say) -> Path:
    """Return a folder with the stock model: `folder` itself, or a decero model's stock export in `target`."""
    if not read_config(folder)["model_type"].startswith("decero_"):
        return folder
    ours = load_ours(folder)
    family, reasons = family_in(engine, ours.config, head_of(ours))
    if family is None:
        why = "; ".join(reasons) or f"none of these has a {type(ours).__name__}"
        raise UserError(f"{source}: {engine.name} reads {_readable(engine)}; {why}")
    lines: list[str] = []
    export_model(folder, target, family.name, lines.append)
    for line in lines[:-1]:  # the last names the folder, which does not stay
        say(f"{family.name}: {line}")
    return target


def family_in(engine: Engine, config: PreTrainedConfig, head: str) -> tuple[Family | None, list[str]]:
    """Return the first stock family as which an engine reads a model of ours, or None, and why not each before it."""
    reasons: list[str] = []
    for family in FAMILIES:
        if family.ours == shape_of(config) and head in engine.heads.get(family.name, ()):
            try:
                family.check_export(config, head)
                return family, reasons
            except UserError as error:
                reasons.append(str(error))
    return None, reasons


def _load(folder: Path, source: Path | str, engine: Engine) -> tuple[PreTrainedModel, Any]:
    """Load a stock model in fp32, in the class of its config.json, and its tokenizer, without custom code."""
    raw = read_config(folder)
    if "auto_map" in raw or "quantization_config" in raw:
        what = "auto_map names code of its own" if "auto_map" in raw else "quantization_config: weights are quantized"
        raise UserError(f"{source}: config.json: {what}; {engine.name} reads plain {_readable(engine)}")
    if raw["model_type"] not in engine.heads:
        raise UserError(f"{source}: {engine.name} cannot read {raw['model_type']}; it reads {_readable(engine)}")
    family, head = family_of_stock(raw["model_type"], (raw.get("architectures") or [None])[0])
    if head not in engine.heads[family.name]:
        known = ", ".join(family.heads[name].stock for name in engine.heads[family.name] if name in family.heads)
        raise UserError(
            f"{source}: {engine.name} cannot read {family.heads[head].stock}; of {family.name} it reads {known}"
        )
    read_headers(folder)
    tokenizer = None
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
        with one_line(f"{source}: cannot load its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    elif engine.needs_tokenizer:
        raise UserError(f"{source}: no tokenizer in this folder; {engine.name} writes its vocabulary into the model")
    kind: Any = getattr(transformers, family.heads[head].stock)
    with one_line(str(source)):
        model, report = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    missing = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
    check_report({"mismatched_keys": [], "missing_keys": missing, "unexpected_keys": []}, kind.__name__)
    if missing != set(report["missing_keys"]):
        model.pooler = None  # it would be random
    return model.eval(), tokenizer


def _readable(engine: Engine) -> str:
    *names, last = engine.heads
    return f"{', '.join(names)} and {last}" if names else last
