"""Write the model card from a run's record. It states only what was measured."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from ruamel.yaml import YAML

from decero.errors import UserError
from decero.execution.transformers_internals import heads_of

TEMPLATE = Path(__file__).with_name("card.md.jinja")
MARK = "<!-- This card was written by `decero push`. Without this line it is yours, and the next push keeps it. -->"

# Auto class of a head -> the hub's task name, and the intended use.
HEADS = {
    "AutoModelForMaskedLM": ("fill-mask", "Filling in masked tokens, and being fine-tuned."),
    "AutoModelForCausalLM": ("text-generation", "Continuing a text, and being fine-tuned."),
    "AutoModelForSeq2SeqLM": (None, "Writing one text from another, as its training data does."),
    "AutoModelForSequenceClassification": ("text-classification", "Classifying texts like those it was trained on."),
    "AutoModelForTokenClassification": ("token-classification", "Labelling the tokens of texts like those it read."),
    "AutoModelForQuestionAnswering": ("question-answering", "Finding the answer to a question inside a given text."),
    "AutoModel": ("feature-extraction", "Turning tokens into vectors, and being fine-tuned with a head of your own."),
}

# An absolute path, or one with `..`, without its last part: it could name a user or a machine. A folder name may
# contain spaces; in a command line it ends where the next ` key=` or ` --flag` begins.
INSIDE = r"(?! [\w.-]+=| --)"
HOME = re.compile(rf"(?:/home|/Users|[A-Za-z]:\\Users)[/\\](?:{INSIDE}[^/\\])+")
FOLDERS = rf"(?:{INSIDE}.)*[/\\]"
LOCAL = re.compile(
    rf"(?<![\w.~/\\:-])(?:file://)?(?:(?:~[^\s/\\]*|[A-Za-z]:|\.\.)[/\\](?:{FOLDERS})?|[/\\](?=\S){FOLDERS})(?=[^/\\])"
)


def without_paths(value: Any) -> Any:
    """Return the record with each absolute path cut to its last part, so that it names no user or machine."""
    if isinstance(value, dict):
        return {name: without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return LOCAL.sub("", HOME.sub("~", value.replace(str(Path.home()), "~")))


def read_run(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Read result.json and config.yaml of the run that made a model folder, without local paths; None if missing.

    They are in `folder`/run, where `push` and the exports write them, or beside a folder named model.
    """
    folder = folder.resolve()
    run = folder / "run" if (folder / "run").is_dir() or folder.name != "model" else folder.parent
    result, settings = run / "result.json", run / "config.yaml"
    return (
        without_paths(json.loads(result.read_text(encoding="utf-8"))) if result.is_file() else None,
        without_paths(YAML(typ="safe", pure=True).load(settings.read_text(encoding="utf-8")))
        if settings.is_file()
        else None,
    )


def model_card(
    name: str,
    config: dict[str, Any] | None,
    result: dict[str, Any] | None,
    settings: dict[str, Any] | None,
    readme: str | None = None,
) -> str:
    """Return the README.md of a model: metadata for the hub, and a text.

    config: config.json; None for a tokenizer alone.
    result, settings: from `read_run`.
    readme: the existing README.md. A text that a user wrote is kept unchanged; only missing metadata is added.

    Raises UserError when the metadata of `readme` is invalid.
    """
    result, settings = result or {}, settings or {}
    data, model = settings.get("data") or {}, settings.get("model") or {}
    corpus = data.get("name") or ", ".join(_leaves(data.get("files"))) or None
    base = model.get("name_or_path")
    auto_class = _auto_class(config) if config else None
    tag, use = HEADS.get(auto_class or "", (None, None))
    rows = list(_measured(result.get("metric") or {}))
    split = result.get("split") or ("validation" if rows and rows[0][0].startswith("eval_") else None)
    loads = "stock" if config else "tokenizer"
    if config and "auto_map" in config:
        loads = "remote code"
    elif config and config["model_type"].startswith("decero"):
        loads = "decero"

    generated = ModelCardData(
        library_name="decero" if loads == "decero" else "transformers",
        pipeline_tag=tag,
        tags=["decero"],
        datasets=[corpus] if corpus and _is_hub_name(corpus) else None,
        base_model=base if base and _is_hub_name(base) else None,
    )
    if config and rows:
        generated.model_name = name
        generated.eval_results = [
            EvalResult(
                task_type=tag or "other",
                dataset_type=corpus or "unknown",
                dataset_name=corpus or "not recorded",
                dataset_split=split,
                metric_type=metric.removeprefix("eval_"),
                metric_name=metric,
                metric_value=value,
            )
            for metric, value, _ in rows
        ]
    existing, text = _read(readme)
    written_by_user = bool(text.strip()) and MARK not in text
    # A user's metadata overrides the generated; the generated overrides that of an earlier push.
    known = generated.to_dict()
    metadata = ModelCardData(**(existing | known if MARK in text else known | existing))
    if written_by_user:
        return f"---\n{metadata.to_yaml()}\n---\n{text}"
    return str(
        ModelCard.from_template(
            metadata,
            template_path=str(TEMPLATE),
            name=name,
            model_type=config and config["model_type"],
            architecture=config and (config.get("architectures") or [None])[0],
            auto_class=auto_class,
            loads=loads,
            use=use,
            preset=Path(model["config"]).name if model.get("config") else None,
            base=base,
            corpus=corpus,
            hub_corpus=bool(corpus and _is_hub_name(corpus)),
            data=data,
            rows=rows,
            split=split,
            seeds=result.get("seeds") or ([result["seed"]] if "seed" in result else []),
            result=result,
            has_settings=bool(settings),
            mark=MARK,
        )
    )


def _measured(metric: Mapping[str, Any]):
    """Yield (name, number, formatted) per metric. A metric is a number, or {mean, sd, low, high} over seeds."""
    for name, value in metric.items():
        spread: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        number = spread.get("mean", value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        words = f"{number:.4f}" if isinstance(number, float) else f"{number:,}"
        words += f" ± {spread['sd']:.4f}" if spread.get("sd") is not None else ""
        words += f" [{spread['low']:.4f}, {spread['high']:.4f}]" if {"low", "high"} <= set(spread) else ""
        yield name, number, words


def _auto_class(config: dict[str, Any]) -> str | None:
    """Return the Auto class that loads the architecture in config.json, None if unknown."""
    architecture = (config.get("architectures") or [None])[0]
    for name, path in config.get("auto_map", {}).items():
        if name in HEADS and path.rpartition(".")[2] == architecture:
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
    items = files.values() if isinstance(files, dict) else files or []
    return [leaf for item in items for leaf in _leaves(item)]


def _read(readme: str | None) -> tuple[dict[str, Any], str]:
    """Return the metadata and the text of a card."""
    if not readme or not readme.lstrip().startswith("---"):
        return {}, readme or ""
    try:
        card = ModelCard(readme)
    except Exception as error:  # the YAML reader and the card raise many types
        raise UserError(f"README.md: cannot read its metadata: {error}") from None
    return card.data.to_dict(), card.text
