"""The labels and the padding of a checkpoint that classifies."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.config.sections import ModelSection
from decero.errors import UserError
from decero.execution.build import checkpoint_of
from decero.execution.model_folder import read_config
from decero.execution.positions import first_position
from decero.execution.pretrained import one_line, read_model_config
from decero.execution.transformers_internals import takes_cache


def checkpoint_config(section: ModelSection) -> Any:
    """Return the configuration of the checkpoint; None for random weights, and where `build_model` will refuse it."""
    if section.name_or_path is None:
        return None
    try:
        with one_line(f"model: {section.name_or_path}"):
            checkpoint = checkpoint_of(section, weights=False)
            config = read_model_config(checkpoint)
        saved = read_config(checkpoint.folder)
    except UserError:  # `build_model` reads it again, and says what is wrong
        return None
    if "label2id" in saved and "id2label" not in saved:  # transformers reads the second table only
        config.id2label = {int(i): name for name, i in saved["label2id"].items()}
    return config


def label_names(config: Any, head: str = "ForSequenceClassification") -> list[str]:
    """Return the name of each row of a checkpoint's classification head; an empty list if it has no such head."""
    heads = getattr(config, "architectures", None)
    if not isinstance(heads, list) or not any(head in str(name) for name in heads):
        return []
    return [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a configuration that name the labels."""
    ids = {name: i for i, name in enumerate(names)}
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": ids}


@torch.no_grad()
def redraw_head(model: PreTrainedModel, seed: int) -> None:
    """Draw the weights that have a row for each label anew, as transformers does for a head of another size.

    A detector has one more row, for "no object"; ours also embeds labels, for denoising, and proposes objects.
    """
    random = torch.Generator().manual_seed(seed)
    base, rows = f"{model.base_model_prefix}.", model.config.num_labels or 0
    rows += hasattr(model, "class_labels_classifier")
    for name, weight in model.named_parameters():
        inside = name.startswith(base) and "embed_classes." not in name and "proposals.classifier." not in name
        if inside or weight.shape[:1] != (rows,):
            continue
        std = getattr(model.config, "initializer_range", 0.02) if weight.dim() > 1 else 0.0
        weight.copy_(torch.randn(weight.shape, generator=random) * std)


def pad_as(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model the tokenizer's padding token: decoders find the end of a text by it.

    Models whose first position depends on their padding token keep it. A decoder pads on the right, because some count
    positions from the left of a row; tokenizers of chat models pad on the left, where answers begin. XLNet's classifier
    reads the last position of a row, so its texts end there.
    """
    if takes_cache(inspect.signature(model.forward).parameters):
        tokenizer.padding_side = "right"
    config: Any = model.config.get_text_config()
    if hasattr(model, "sequence_summary") and getattr(config, "summary_type", None) == "last":
        tokenizer.padding_side = "left"
    if config.pad_token_id is None or not first_position(model):
        config.pad_token_id = tokenizer.pad_token_id
