"""Write the metadata of a model card in the hub's schema: task, data, results, license, language, example.

Schema: hub-docs, modelcard.md; the classes are huggingface_hub's.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from decero.execution.transformers_internals import heads_of
from decero.hub.card_words import LANGUAGES, words_in
from decero.hub.foreign_files import read_json

MOST_LETTERS = 300  # of one fact
# Auto class of a head -> the hub's task name; the intended use is in `card_words`
HEADS: dict[str, str | None] = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSeq2SeqLM": None,  # or what `generation.metric` says
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": None,
    "AutoModelForPreTraining": None,
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForMaskedImageModeling": None,
    "AutoBackbone": None,
    "AutoModel": "feature-extraction",
    "AutoModelForTextEncoding": "feature-extraction",  # where AutoModel makes another class
}
PICTURES = {  # read pictures: the folder has an image processor and no tokenizer
    "AutoModelForImageClassification", "AutoModelForSemanticSegmentation", "AutoModelForObjectDetection",
    "AutoModelForMaskedImageModeling", "AutoBackbone", "diffusion", "picture vectors",
}  # fmt: skip
PEFT_CLASSES = {  # with an AutoPeftModel of its own
    "AutoModel", "AutoModelForCausalLM", "AutoModelForQuestionAnswering", "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
}  # fmt: skip
WRITES = ("translation", "summarization")  # values of generation.metric that are tasks of the hub, too
# Our name of a metric -> the hub's identifier, and the arguments that it is computed with
METRICS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "f1_macro": ("f1", {"average": "macro"}),
    "f1_micro": ("f1", {"average": "micro"}),
    "pearson": ("pearsonr", None),
    "spearman": ("spearmanr", None),
    "bleu": ("sacrebleu", None),
    "rouge1": ("rouge", None),
    "rouge2": ("rouge", None),
    "rougeL": ("rouge", None),
    "rougeLsum": ("rouge", None),
}
MASK = re.compile(r"[\w<>\[\]|/-]{1,40}")


def card_metadata(
    name: str,
    tag: str | None,
    library: str,
    corpus: str | None,
    base: str | None,
    adapts: bool,
    data: Mapping[str, Any],
    results: Sequence[tuple[str, float, str]],
    split: str | None,
    license: str | None,
    languages: Sequence[str],
    mask: str | None,
) -> ModelCardData:
    """Return the metadata. What is not known is left out.

    results: (metric, value, words), of the split. data: the settings of the data. mask: the mask token.
    """
    hub_data = corpus if corpus and is_hub_name(corpus) else None
    hub_base = base if base and is_hub_name(base) else None
    metadata = ModelCardData(
        library_name=library,
        pipeline_tag=tag,
        license=license,
        language=list(languages) or None,
        tags=["decero"],
        datasets=[hub_data] if hub_data else None,
        base_model=hub_base,
        base_model_relation="adapter" if adapts else "finetune" if hub_base else None,
        widget=example_of(tag, languages, mask),
    )
    if results:
        task = tag or "other"
        metadata.model_name = name
        metadata.eval_results = [
            EvalResult(
                task_type=task,
                task_name=task.replace("-", " ").capitalize(),
                dataset_type=without_markup(corpus or "unknown"),
                dataset_name=without_markup(corpus or "not recorded"),
                dataset_config=without_markup(data["config_name"]) if hub_data and data.get("config_name") else None,
                dataset_revision=without_markup(data["revision"]) if hub_data and data.get("revision") else None,
                dataset_split=split and without_markup(split),
                metric_type=metric_of(metric)[0],
                metric_args=metric_of(metric)[1],
                metric_name=without_markup(metric),
                metric_value=value,
            )
            for metric, value, _ in results
        ]
        metadata.metrics = list(dict.fromkeys(result.metric_type for result in metadata.eval_results))
    return metadata


def task_of(kind: str, settings: Mapping[str, Any]) -> str | None:
    """Return the hub's task name of a kind of model, mostly the Auto class of its head; None if it has none for it."""
    writes = (settings.get("generation") or {}).get("metric")
    if kind == "AutoModelForSeq2SeqLM" and writes in WRITES:
        return writes
    return "image-feature-extraction" if kind == "picture vectors" else HEADS.get(kind)


def metric_of(name: str) -> tuple[str, dict[str, Any] | None]:
    """Return the hub's identifier of a metric and its arguments; `help_bleu` is the BLEU of the part `help`."""
    name = name.removeprefix("eval_")
    for known, found in METRICS.items():
        if name == known or name.endswith(f"_{known}"):
            return found
    return without_markup(name), None


def example_of(tag: str | None, languages: Sequence[str], mask: str | None) -> list[dict[str, str]] | None:
    """Return an example for the model's page on the hub; None for a task or a language without one."""
    if not languages or languages[0] not in LANGUAGES or (tag == "fill-mask" and not mask):
        return None
    words = words_in(languages[0])
    if tag is None or tag not in words:
        return None
    context = {"context": words["context"]} if tag == "question-answering" else {}
    return [{"text": words[tag].replace("{mask}", mask or "")} | context]


def mask_token(files: Mapping[str, Path]) -> str | None:
    """Return the mask token that tokenizer_config.json of a model names; None for none. files: those of the model."""
    if "tokenizer_config.json" not in files:
        return None
    token: Any = read_json(files["tokenizer_config.json"]).get("mask_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and MASK.fullmatch(token) else None


def draws(files: Mapping[str, Path]) -> bool:
    """Tell whether tokenizer_config.json of a model says that its tokens are pixels (`recipes/tokenize_images.py`)."""
    return "tokenizer_config.json" in files and "image_tokens" in read_json(files["tokenizer_config.json"])


def auto_class_of(config: Mapping[str, Any]) -> str | None:
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


def is_hub_name(name: str) -> bool:
    """Tell whether a name looks like OWNER/NAME on the hub and is not a local path."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def without_markup(text: Any) -> str:
    """Return a name for the metadata, which pages show in places of their own."""
    return re.sub(r"[<>\[\]`|\\]+", " ", " ".join(str(text).split()))[:MOST_LETTERS] or "unnamed"
