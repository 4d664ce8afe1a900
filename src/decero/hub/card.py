"""Write the model card from a run's record. It states only what was measured."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import HFValidationError, validate_repo_id
from ruamel.yaml import YAML

from decero.config.yaml_files import check_events, read_yaml
from decero.errors import UserError
from decero.execution.transformers_internals import heads_of
from decero.hub.foreign_files import check_sendable, read_json
from decero.hub.private import without_paths

TEMPLATE = Path(__file__).with_name("card.md.jinja")
MOST_LETTERS = 300  # of one fact
MARK = "<!-- This card was written by `decero push`. Without this line it is yours, and the next push keeps it. -->"

# Auto class of a head -> the hub's task name, and the intended use.
HEADS = {
    "AutoModelForMaskedLM": ("fill-mask", "Filling in masked tokens, and being fine-tuned."),
    "AutoModelForCausalLM": ("text-generation", "Continuing a text, and being fine-tuned."),
    "AutoModelForSeq2SeqLM": (None, "Writing one text from another, as its training data does."),
    "AutoModelForSequenceClassification": ("text-classification", "Classifying texts like those it was trained on."),
    "AutoModelForTokenClassification": ("token-classification", "Labelling the tokens of texts like those it read."),
    "AutoModelForQuestionAnswering": ("question-answering", "Finding the answer to a question inside a given text."),
    "AutoModelForMultipleChoice": (None, "Choosing the right one of several answers to a question."),
    "AutoModelForPreTraining": (None, "Being fine-tuned, or trained further."),
    "AutoModelForImageClassification": ("image-classification", "Classifying pictures like those it was trained on."),
    "AutoModelForSemanticSegmentation": ("image-segmentation", "Finding the class of each pixel of such pictures."),
    "AutoModelForObjectDetection": ("object-detection", "Finding objects in pictures like those it was trained on."),
    "AutoModelForMaskedImageModeling": (None, "Being fine-tuned; it learnt to predict hidden patches of pictures."),
    "AutoBackbone": (None, "Giving maps of pictures to a model such as DETR."),
    "AutoModel": ("feature-extraction", "Turning tokens into vectors, and being fine-tuned with a head of your own."),
}
CHOOSES = (None, "Choosing the sentences of a document that summarise it (`decero summarize`).")

# What result.json and config.yaml may hold where the card reads them; all else travels as it is.
NUMBERS = (
    "seed", "steps", "tokens", "wall_time_s", "num_processes", "peak_memory_bytes", "train_examples", "documents",
    "total_flos", "num_parameters", "pictures",
)  # fmt: skip
RESULT = dict.fromkeys(NUMBERS, "number") | {
    "metric": "mapping", "split": "text", "seeds": "list", "device": "text", "machine": "text",
}  # fmt: skip
SETTINGS = {
    "model": "mapping", "model.name_or_path": "text", "model.config": "text", "data": "mapping", "data.name": "text",
    "data.config_name": "text", "data.revision": "text", "data.max_length": "number",
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
    bias: str | None = None,
) -> str:
    """Return the README.md of a model: metadata for the hub, and a text.

    config: config.json; None for a tokenizer alone.
    result, settings: from `read_run`.
    readme: the existing README.md. A text that a user wrote is kept unchanged; only missing metadata is added.
    adapts: of an adapter, the model that it belongs to.
    bias: the section on bias probes; None: they were not run.

    Raises UserError when the metadata of `readme` is invalid.
    """
    result, settings = result or {}, settings or {}
    data, model = settings.get("data") or {}, settings.get("model") or {}
    corpus = data.get("name") or ", ".join(_leaves(data.get("files"))) or None
    base = adapts or model.get("name_or_path")
    auto_class = _auto_class(config) if config else None
    tag, use = HEADS.get(auto_class or "", (None, None))
    if config and config.get("extractive"):
        tag, use = CHOOSES
    rows = list(_measured(result.get("metric") or {}))
    split = result.get("split") or ("validation" if rows and rows[0][0].startswith("eval_") else None)
    loads = "stock" if config else "tokenizer"
    if config and config.get("auto_map"):
        loads = "remote code"
    elif config and config["model_type"].startswith("decero"):
        loads = "decero"
    library = "peft" if adapts else "decero" if loads == "decero" else "transformers"

    generated = ModelCardData(
        library_name=library,
        pipeline_tag=tag,
        tags=["decero"],
        datasets=[corpus] if corpus and _is_hub_name(corpus) else None,
        base_model=base if base and _is_hub_name(base) else None,
        base_model_relation="adapter" if adapts else None,
    )
    if config and rows:
        generated.model_name = name
        generated.eval_results = [
            EvalResult(
                task_type=tag or "other",
                dataset_type=_without_markup(corpus or "unknown"),
                dataset_name=_without_markup(corpus or "not recorded"),
                dataset_split=split and _without_markup(split),
                metric_type=_without_markup(metric.removeprefix("eval_")),
                metric_name=_without_markup(metric),
                metric_value=value,
            )
            for metric, value, _ in rows
        ]
    existing, text = _read(readme)
    written_by_user = bool(text.strip()) and MARK not in text
    # A user's metadata overrides the generated; the generated overrides that of an earlier push.
    known = generated.to_dict()
    try:
        metadata = ModelCardData(**(existing | known if MARK in text else known | existing))
        if written_by_user:
            return f"---\n{metadata.to_yaml()}\n---\n{text}"
        card = ModelCard.from_template(
            metadata,
            template_path=str(TEMPLATE),
            name=name,
            model_type=config and config["model_type"],
            architecture=config and (config.get("architectures") or [None])[0],
            auto_class=auto_class,
            loads=loads,
            adapts=adapts,
            num_labels=config and len(config.get("id2label") or ()),
            use=use,
            preset=Path(model["config"]).name if model.get("config") else None,
            base=base,
            corpus=corpus,
            hub_corpus=bool(corpus and _is_hub_name(corpus)),
            data=data,
            rows=rows,
            split=split,
            seeds=result.get("seeds") or ([result["seed"]] if result.get("seed") is not None else []),
            result=result,
            has_settings=bool(settings),
            bias=bias,
            mark=MARK,
            plain=plain,
            code=code,
        )
    except (TypeError, ValueError) as error:  # from_template takes every key of the metadata as an argument
        raise UserError(f"README.md: its metadata is not that of a model card: {error}") from None
    return str(card)


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


def _without_markup(text: str) -> str:
    """Return a name for the metadata, which pages show in places of their own."""
    return re.sub(r"[<>\[\]`|\\]+", " ", " ".join(text.split()))[:MOST_LETTERS] or "unnamed"


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


def _auto_class(config: dict[str, Any]) -> str | None:
    """Return the Auto class that loads the architecture in config.json, None if unknown."""
    architecture = (config.get("architectures") or [None])[0]
    for name, path in (config.get("auto_map") or {}).items():
        if name in HEADS and str(path).rpartition(".")[2] == architecture:
            return name
    if config["model_type"] in transformers.CONFIG_MAPPING:
        config_class = transformers.CONFIG_MAPPING[config["model_type"]]
        for name in HEADS:
            if architecture in {head.__name__ for head in heads_of(getattr(transformers, name), config_class)}:
                return name
    return None


def _is_hub_name(name: str) -> bool:
    """Tell whether a name looks like OWNER/NAME on the hub and is not a local path."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def _leaves(files: Any) -> list[str]:
    """Return every string in nested mappings and lists."""
    if isinstance(files, str):
        return [files]
    items = files.values() if isinstance(files, dict) else files if isinstance(files, list) else []
    return [leaf for item in items for leaf in _leaves(item)]


def _read(readme: str | None) -> tuple[dict[str, Any], str]:
    """Return the metadata and the text of a card."""
    if not readme or not readme.lstrip().startswith("---"):
        return {}, readme or ""
    try:
        if block := REGEX_YAML_BLOCK.search(readme):
            check_events(YAML(typ="safe", pure=True).parse(block[2]), "README.md")
        card = ModelCard(readme)
    except UserError:
        raise
    except Exception as error:  # the YAML reader and the card raise many types
        raise UserError(f"README.md: cannot read its metadata: {error}") from None
    return card.data.to_dict(), card.text
