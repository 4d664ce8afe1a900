"""A stock model as one of ours, and one of ours as a stock model."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from decero.errors import UserError, did_you_mean
from decero.hub.families import FAMILIES
from decero.hub.table import LM_HEADS, Family


def from_stock(stock: PreTrainedModel) -> PreTrainedModel:
    """The same model in our classes: same numbers, same dtype.

    Raises UserError naming an option or a tensor of `stock` that has no counterpart here.
    """
    family, head = family_of_stock(stock.config.model_type, type(stock).__name__)
    family.check_import(stock.config, head)
    config = family.our_config(stock.config, head)
    if head in LM_HEADS:  # what the weights say; a file may hold two matrices whatever its configuration has
        config.tie_word_embeddings = stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    if "pooling_layer" in family.by_tensors and head == "Model":
        config.pooling_layer = getattr(stock, "pooler", None) is not None
    ours = family.our_class(head)._from_config(config, dtype=stock.dtype)
    tensors = stock.state_dict()
    for name, computed in family.formula(stock).items():
        tolerance = 1e-4 if computed.dtype == torch.float32 else 1e-2
        if not torch.allclose(tensors.pop(name).float(), computed.float(), atol=tolerance):
            raise UserError(f"tensor {name} is not the formula that {family.name} has there")
    _fill(ours, family.translate(tensors, ours.state_dict(), head, to_stock=False))
    return ours.train(stock.training)


def to_stock(ours: PreTrainedModel, family: str) -> PreTrainedModel:
    """The same model in the stock classes of a family: same numbers, same dtype.

    Raises UserError naming a field of the configuration that the family cannot express.
    """
    table = family_named(family, shape_of(ours))
    head = head_of(ours)
    table.check_export(ours.config, head)
    config = table.stock_config(ours.config)
    pooled = "pooling_layer" in table.by_tensors and head == "Model"
    arguments = {"add_pooling_layer": ours.config.pooling_layer} if pooled else {}
    # Not .to(dtype), which would round the frequencies of rotary positions, buffers that stay in fp32.
    stock = table.stock_class(head)._from_config(config, dtype=ours.dtype, **arguments)
    if head in LM_HEADS and not ours.config.tie_word_embeddings:
        untie(stock)
    computed = table.formula(stock)
    wanted = {name: tensor for name, tensor in stock.state_dict().items() if name not in computed}
    _fill(stock, table.translate(ours.state_dict(), wanted, head, to_stock=True))
    return stock.train(ours.training)


def _fill(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(tensors, strict=False)  # translate() was strict already


def untie(stock: Any) -> None:
    """Give the head a matrix of its own. T5's configuration ties it always, and from_pretrained unties it like this."""
    head = stock.get_output_embeddings()
    if head.weight is stock.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        stock.all_tied_weights_keys = {k: v for k, v in stock.all_tied_weights_keys.items() if k != "lm_head.weight"}


def shape_of(ours: PreTrainedModel | PreTrainedConfig) -> str:
    """What the names of our classes begin with: DeceroEncoder, DeceroDecoder, DeceroEncoderDecoder."""
    config = ours if isinstance(ours, PreTrainedConfig) else ours.config
    return type(config).__name__.removesuffix("Config")


def head_of(ours: PreTrainedModel) -> str:
    """The rest of our class's name: Model, ForMaskedLM ..."""
    return type(ours).__name__.removeprefix(shape_of(ours))


def family_of_stock(model_type: str, class_name: str | None) -> tuple[Family, str]:
    """The table of a stock class, None for the bare model, and the end of our class's name: Model, ForMaskedLM ..."""
    known = [family for family in FAMILIES if family.name == model_type]
    if not known:
        names = list(dict.fromkeys(family.name for family in FAMILIES))
        raise UserError(
            f"model_type {model_type} has no counterpart here{did_you_mean(model_type, names)} "
            f"(families: {', '.join(names)})"
        )
    classes = {head.stock: (family, name) for family in known for name, head in family.heads.items()}
    class_name = class_name or known[0].heads["Model"].stock
    class_name = known[0].also_loads.get(class_name, class_name)
    if class_name not in classes:
        raise UserError(
            f"{class_name} has no counterpart here{did_you_mean(class_name, classes)} (of {model_type} there are "
            f"{', '.join(classes)})"
        )
    return classes[class_name]


def family_named(name: str, shape: str) -> Family:
    known = {family.name: family for family in FAMILIES if family.ours == shape}
    if name not in known:
        raise UserError(f"no {name} can hold a {shape}{did_you_mean(name, known)} (these can: {', '.join(known)})")
    return known[name]
