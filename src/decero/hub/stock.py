"""Convert a stock model to a decero model, and a decero model to a stock model."""

import re

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from decero.errors import UserError, did_you_mean
from decero.execution.saving import untie
from decero.hub.families import FAMILIES
from decero.hub.table import LM_HEADS, Family

UNREAD_BIAS = ("cls.predictions.bias", "lm_head.bias")  # of a head whose decoder has a bias of its own


def from_stock(stock: PreTrainedModel) -> PreTrainedModel:
    """Return the same model in decero classes: same values, same dtype.

    Raises UserError that names an option or a tensor of `stock` without counterpart in decero.
    """
    family, head = family_of_stock(stock.config.model_type, type(stock).__name__)
    family.check_import(stock.config, head)
    config = family.our_config(stock.config, head)
    if head in LM_HEADS:  # trust the weights: a file may hold two matrices although its configuration ties them
        config.tie_word_embeddings = stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    if "pooling_layer" in family.by_tensors and head == "Model":
        config.pooling_layer = getattr(stock, "pooler", None) is not None
    ours = family.our_class(head)._from_config(config, dtype=stock.dtype)
    tensors = stock.state_dict()
    for name, computed in family.formula(stock).items():
        tolerance = 1e-4 if computed.dtype == torch.float32 else 1e-2
        if not torch.allclose(tensors.pop(name).float(), computed.float(), atol=tolerance):
            raise UserError(f"tensor {name} differs from the formula of {family.name}")
    if head in LM_HEADS:  # without tied embeddings, BERT and RoBERTa have a bias that no forward pass reads
        read = getattr(stock.get_output_embeddings(), "bias", None)
        twice = [name for name in UNREAD_BIAS if name in tensors and stock.get_parameter(name) is not read]
        tensors = {name: tensor for name, tensor in tensors.items() if read is None or name not in twice}
    _fill(ours, family.translate(tensors, ours.state_dict(), head, to_stock=False))
    return ours.train(stock.training)


def to_stock(ours: PreTrainedModel, family: str) -> PreTrainedModel:
    """Return the same model in the stock classes of a family: same values, same dtype.

    Raises UserError that names a configuration field that the family cannot express.
    """
    table, head = family_for(family, ours), head_of(ours)
    table.check_export(ours.config, head)
    config = table.stock_config(ours.config)
    pooled = "pooling_layer" in table.by_tensors and head == "Model"
    arguments = {"add_pooling_layer": ours.config.pooling_layer} if pooled else {}
    # Not .to(dtype): it would round the rotary frequencies, which are buffers in fp32.
    stock = table.stock_class(head)._from_config(config, dtype=ours.dtype, **arguments)
    if head in LM_HEADS and not ours.config.tie_word_embeddings:
        untie(stock)
    computed, absent = table.formula(stock), [p for name, p in table.zeros.items() if not getattr(ours.config, name)]
    tensors = {name: tensor for name, tensor in stock.state_dict().items() if name not in computed}
    zeros = {n: torch.zeros_like(t) for n, t in tensors.items() if any(re.fullmatch(p, n) for p in absent)}
    wanted = {name: tensor for name, tensor in tensors.items() if name not in zeros}
    tensors_of_ours = table.fold_tensors(ours.config, ours.state_dict())
    _fill(stock, zeros | table.translate(tensors_of_ours, wanted, head, to_stock=True))
    return stock.train(ours.training)


def _fill(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(tensors, strict=False)  # translate() has checked all names


def shape_of(ours: PreTrainedModel | PreTrainedConfig) -> str:
    """Return the shape, the start of the class name: DeceroEncoder, DeceroVision ..."""
    config = ours if isinstance(ours, PreTrainedConfig) else ours.config
    return type(config).__name__.removesuffix("Config")


def head_of(ours: PreTrainedModel) -> str:
    """Return the head, the rest of the class name: Model, ForMaskedLM ..."""
    return type(ours).__name__.removeprefix(shape_of(ours))


def family_of_stock(model_type: str, class_name: str | None) -> tuple[Family, str]:
    """Return the family and the head (Model, ForMaskedLM ...) of a stock class; None: the bare model."""
    known = [family for family in FAMILIES if family.name == model_type]
    if not known:
        names = list(dict.fromkeys(family.name for family in FAMILIES))
        raise UserError(
            f"model_type {model_type} has no counterpart in decero{did_you_mean(model_type, names)} "
            f"(families: {', '.join(names)})"
        )
    classes = {head.stock: (family, name) for family in known for name, head in family.heads.items()}
    class_name = class_name or next(iter(known[0].heads.values())).stock
    class_name = known[0].also_loads.get(class_name, class_name)
    if class_name not in classes:
        raise UserError(
            f"{class_name} has no counterpart in decero{did_you_mean(class_name, classes)} (classes of {model_type}: "
            f"{', '.join(classes)})"
        )
    return classes[class_name]


def family_for(name: str, ours: PreTrainedModel) -> Family:
    """Return the table of that name which can hold the model, or its first one.

    Raises UserError when the family has no models of this shape.
    """
    shape = shape_of(ours)
    names = dict.fromkeys(family.name for family in FAMILIES if family.ours == shape)
    if name not in names:
        raise UserError(f"family {name} cannot hold a {shape}{did_you_mean(name, names)} (use: {', '.join(names)})")
    tables = [family for family in FAMILIES if (family.name, family.ours) == (name, shape)]
    return next((table for table in tables if can_hold(table, ours)), tables[0])


def can_hold(family: Family, ours: PreTrainedModel) -> bool:
    """Return whether a family has a class for the model and expresses its configuration."""
    try:
        family.check_export(ours.config, head_of(ours))
    except UserError:
        return False
    return True
