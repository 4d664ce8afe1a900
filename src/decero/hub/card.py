"""Write the model card from a run's record. It states only what was measured."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from ruamel.yaml import YAML

from decero.config.hub_names import check_languages, check_license
from decero.config.yaml_files import check_events, read_yaml
from decero.errors import UserError
from decero.execution.pretraining_objective import FIELD, PERMUTATION
from decero.hub.bias_section import bias_lines
from decero.hub.card_metadata import (
    MOST_LETTERS,
    PEFT_CLASSES,
    PICTURES,
    auto_class_of,
    card_metadata,
    is_hub_name,
    task_of,
)
from decero.hub.card_words import words_in
from decero.hub.foreign_files import check_sendable, read_json
from decero.hub.private import without_paths

TEMPLATE = Path(__file__).with_name("card.md.jinja")
MARK = "<!-- This card was written by `decero push`. Without this line it is yours, and the next push keeps it. -->"

# What result.json and config.yaml may hold where the card reads them; all else travels as it is.
NUMBERS = (
    "seed", "steps", "tokens", "wall_time_s", "num_processes", "peak_memory_bytes", "train_examples", "documents",
    "total_flos", "num_parameters", "pictures",
)  # fmt: skip
RESULT = dict.fromkeys(NUMBERS, "number") | {
    "metric": "mapping", "split": "text", "seeds": "list", "device": "text", "machine": "text", "compared": "mapping",
    "compared.seeds": "list", "compared.by": "text", "compared.metric": "text", "compared.mean": "number",
    "compared.sd": "number",
}  # fmt: skip
SETTINGS = {
    "model": "mapping", "model.name_or_path": "text", "model.config": "text", "data": "mapping", "data.name": "text",
    "data.config_name": "text", "data.revision": "text", "data.max_length": "number", "generation": "mapping",
    "generation.metric": "text", "hub": "mapping", "hub.license": "text", "hub.language": "list",
}  # fmt: skip
KINDS: dict[str, Any] = {"number": int | float, "mapping": dict, "text": str, "list": list}
PLAIN = re.compile(r"[^\W_]|(?<=[^\W_])_(?=[^\W_])|[ ,.()%/±×-]")


def read_run(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Read result.json and config.yaml of the run that made a model folder, without local paths; None if missing.

    They are in `folder`/run, where `push` and the exports write them, or beside a folder named model.

    Raises UserError: a link to a file elsewhere; a file that is damaged, very large or of wrong types.
    """
    folder = folder.resolve()
    run = folder / "run" if (folder / "run").is_dir() or folder.name != "model" else folder.parent
    if run.is_symlink():
        raise UserError(f"{run}: this is a link, which is not followed; replace it with a copy, or remove it")
    found: dict[str, dict[str, Any]] = {}
    for name, read, kinds in (("result.json", read_json, RESULT), ("config.yaml", read_yaml, SETTINGS)):
        if (run / name).is_symlink() or (run / name).exists():
            found[name] = read(check_sendable(run / name, folder))
            _check_kinds(found[name], kinds, run / name)
    return without_paths(found.get("result.json")), without_paths(found.get("config.yaml"))


def _check_kinds(record: dict[str, Any], kinds: dict[str, str], path: Path) -> None:
    for name, kind in kinds.items():
        section, _, key = name.rpartition(".")
        value = ((record.get(section) or {}) if section else record).get(key)
        fits = value is None or isinstance(value, KINDS[kind])
        if not fits or (kind == "number" and value is not None and abs(value) > 1e300):
            shown = text if len(text := repr(value)) <= 80 else f"{text[:80]}..."
            raise UserError(f"{path}: {name} is {shown}, not a {kind}; correct it, or remove the file")


def model_card(
    name: str,
    config: dict[str, Any] | None,
    result: dict[str, Any] | None,
    settings: dict[str, Any] | None,
    readme: str | None = None,
    adapts: str | None = None,
    bias: Mapping[str, Any] | None = None,
    *,
    license: str | None = None,
    languages: Sequence[str] = (),
    mask: str | None = None,
    draws: bool = False,
) -> str:
    """Return the README.md of a model: metadata for the hub, and a text, in Spanish where the first language is `es`.

    config: config.json; None for a tokenizer alone.
    result, settings: from `read_run`.
    readme: the existing README.md. A text that a user wrote is kept unchanged; only missing metadata is added.
    adapts: of an adapter, the model that it belongs to.
    bias: the record of bias probes (`read_bias`); None: they were not run.
    license, languages: instead of those of the settings and of `readme`.
    mask: the mask token of the tokenizer.
    draws: whether its tokens are pixels.

    Raises UserError when the metadata of `readme` is invalid, and for a license or language that the hub does not know.
    """
    result, settings = result or {}, settings or {}
    data, model, hub = (settings.get(part) or {} for part in ("data", "model", "hub"))
    try:
        stated, spoken = check_license(hub.get("license")), check_languages(hub.get("language") or [])
        given, asked = check_license(license), check_languages(list(languages))
    except ValueError as error:
        raise UserError(f"the license or the language of the model: {error}") from None
    corpus = data.get("name") or ", ".join(_leaves(data.get("files"))) or None
    base = adapts or model.get("name_or_path")
    auto_class = auto_class_of(config) if config else None
    kind = "extractive" if config and config.get("extractive") else auto_class or ""
    kind = "diffusion" if config and config["model_type"] == "decero_diffusion" else kind
    if config and auto_class == "AutoModel" and kind == auto_class and "image_size" in config:
        kind = "picture vectors"
    kind = "image tokens" if draws else kind
    if config and config.get(FIELD) == PERMUTATION and kind == "AutoModelForMaskedLM":
        kind = PERMUTATION
    tag = task_of(kind, settings)
    rows = list(_measured(result.get("metric") or {}))
    split = result.get("split") or ("validation" if rows and rows[0][0].startswith("eval_") else None)
    loads = loading(config)
    library = "peft" if adapts else "decero" if loads == "decero" else "transformers"
    existing, text = read_card(readme)
    written_by_user = bool(text.strip()) and MARK not in text
    before = existing.get("language") or []
    before = [each for each in ([before] if isinstance(before, str) else before) if isinstance(each, str)]
    spoken = asked or (spoken or before if MARK in text else before or spoken)
    known = card_metadata(
        name, tag, library, corpus, base, bool(adapts), data, rows if config else [], split, stated, spoken, mask
    ).to_dict()
    # The user's options override a user's metadata, that the generated, and the generated that of an earlier push.
    options = ({"license": given} if given else {}) | ({"language": asked} if asked else {})
    words = words_in("es" if spoken[:1] == ["es"] else "en")
    try:
        metadata = ModelCardData(**((existing | known if MARK in text else known | existing) | options))
        if written_by_user:
            return f"---\n{metadata.to_yaml()}\n---\n{text}"
        card = ModelCard.from_template(
            metadata,
            template_path=str(TEMPLATE),
            words=words,
            name=name,
            model_type=config and config["model_type"],
            architecture=config and (config.get("architectures") or [None])[0],
            auto_class=auto_class,
            reader="AutoImageProcessor" if {auto_class, kind} & PICTURES else "AutoTokenizer",
            peft_class=(auto_class or "AutoModel") in PEFT_CLASSES,
            loads=loads,
            adapts=adapts,
            num_labels=config and len(config.get("id2label") or ()),
            use=words.get(kind),
            preset=Path(model["config"]).name if model.get("config") else None,
            base=base,
            corpus=corpus,
            hub_corpus=bool(corpus and is_hub_name(corpus)),
            data=data,
            rows=rows,
            split=split,
            seeds=result.get("seeds") or ([result["seed"]] if result.get("seed") is not None else []),
            compared=_compared(result.get("compared") or {}),
            result=result,
            has_settings=bool(settings),
            bias=bias and bias_lines(bias, plain, words),
            mark=MARK,
            plain=plain,
            code=code,
            number=lambda value: f"{value:,}".replace(",", "\N{NO-BREAK SPACE}" if spoken[:1] == ["es"] else ","),
        )
    except (TypeError, ValueError) as error:  # from_template takes every key of the metadata as an argument
        raise UserError(f"README.md: its metadata is not that of a model card: {error}") from None
    return str(card)


def loading(config: dict[str, Any] | None) -> str:
    """Say what loads a model: `stock` transformers, `remote code` in its folder, `decero`; or it is a `tokenizer`."""
    if config is None:
        return "tokenizer"
    if config.get("auto_map"):
        return "remote code"
    return "decero" if config["model_type"].startswith("decero") else "stock"


def _compared(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a comparison recorded of a run: its seeds, and the mean of the metric; None without it."""
    if not record.get("seeds") or not record.get("metric") or not _is_number(record.get("mean")):
        return None
    spread = {name: record[name] for name in ("mean", "sd") if _is_number(record.get(name))}
    [(_, _, shown)] = _measured({"": spread})
    return record | {"shown": shown}


def plain(value: Any) -> str:
    """Return a text as one line of Markdown that renders as itself: no HTML, links, tables or emphasis."""
    text = " ".join(str(value).split())
    text = "".join(c if PLAIN.match(text, n) else f"&#{ord(c)};" for n, c in enumerate(text[:MOST_LETTERS]))
    text = re.sub(r"(?i)www\.", "www&#46;", text)  # would become a link
    return text if len(str(value)) <= MOST_LETTERS else f"{text}..."


def code(value: Any) -> str:
    """Return a text as one line of code in Markdown."""
    text = " ".join(str(value).split())
    return f"<code>{plain(value)}</code>" if re.search(r"[`<>&|\\]|[^\x20-\x7e]", text) or not text else f"`{text}`"


def _measured(metric: Mapping[str, Any]):
    """Yield (name, number, formatted) per metric. A metric is a number, or {mean, sd, low, high} over seeds."""
    for name, value in metric.items():
        given = value if isinstance(value, Mapping) else {"mean": value}
        spread = {key: number for key, number in given.items() if _is_number(number)}
        if "mean" not in spread:
            continue
        number = spread["mean"]
        words = f"{number:.4f}" if isinstance(number, float) else f"{number:,}"
        words += f" ± {spread['sd']:.4f}" if "sd" in spread else ""
        words += f" [{spread['low']:.4f}, {spread['high']:.4f}]" if {"low", "high"} <= set(spread) else ""
        yield name, number, words


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def _leaves(files: Any) -> list[str]:
    """Return every string in nested mappings and lists."""
    if isinstance(files, str):
        return [files]
    items = files.values() if isinstance(files, dict) else files if isinstance(files, list) else []
    return [leaf for item in items for leaf in _leaves(item)]


def read_card(readme: str | None) -> tuple[dict[str, Any], str]:
    """Return the metadata and the text of a card. Raises UserError for metadata that is not YAML."""
    if not readme or not readme.lstrip().startswith("---"):
        return {}, readme or ""
    try:
        if block := REGEX_YAML_BLOCK.search(readme):
            check_events(YAML(typ="safe", pure=True).parse(block[2]), "README.md")
        card = ModelCard(readme)
    except UserError:
        raise
    except Exception as error:  # the YAML reader and the card raise many types
        raise UserError(f"README.md: cannot read its metadata: {' '.join(str(error).split())}") from None
    return card.data.to_dict(), card.text
