"""The table of a family: how to convert its configuration in both directions; for tensors see tensors.py.

A table is text. A line of fields is `ours stock`, or one word if both names are equal. A name may be on several lines;
then their values must be equal. A field on no line must have its default value. To check this, a configuration is
converted there and back: a field that changes has no counterpart, and an error names it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

import decero.models
from decero.errors import UserError
from decero.execution.transformers_internals import StrictDataclassError
from decero.hub.tensors import translate

Tensors = Mapping[str, torch.Tensor]
CARRIED = ("id2label", "label2id", "problem_type")
# what a recipe wrote into the configuration, and decero's commands read
KEPT_IF_THERE = ("reads_pairs", "decision_threshold", "mask_token_id", "question_answering", "tagging", "extractive",
                 "task_specific_params")  # fmt: skip
TRAINING = ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "classifier_dropout",
            "auxiliary_loss", "train_lm_head_bias")  # fmt: skip
STARTS = {"initializer_range", "embedding_initializer_range"}  # used only for random initial weights
GENERIC = {f.name for f in fields(PreTrainedConfig)} | {"use_cache"} | STARTS  # do not change the outputs
POOLED = ("ForSequenceClassification", "ForMultipleChoice")
OVER_TOKENS = ("ForTokenClassification", "ForQuestionAnswering")
LM_HEADS = ("ForMaskedLM", "ForCausalLM", "ForConditionalGeneration")


def predicts(config: Any, head: str) -> bool:
    """Tell whether a head over texts or tokens is a prediction head, as in ModernBERT."""
    return head in (*POOLED, *OVER_TOKENS) and config.classifier_head == "prediction"


# Fields of decero that only some models use: (configuration, head) -> does this model use it?
ACTS: dict[str, Callable[[Any, str], bool]] = {
    "conv_kernel_size": lambda c, head: c.mixer_type == "conv",
    "norm_bias": lambda c, head: c.norm_type == "layernorm",
    "rope_theta": lambda c, head: c.position_embedding_type == "rotary",
    "rope_parameters": lambda c, head: c.position_embedding_type == "rotary",
    "local_rope_theta": lambda c, head: c.position_embedding_type == "rotary" and "sliding_attention" in c.layer_types,
    "sliding_window": lambda c, head: "sliding_attention" in c.layer_types,
    "relative_attention_num_buckets": lambda c, head: c.position_embedding_type == "relative",
    "relative_attention_max_distance": lambda c, head: c.position_embedding_type == "relative",
    "max_position_embeddings": lambda c, head: c.position_embedding_type != "relative",
    "classifier_pooling": lambda c, head: head in POOLED or (head == "Model" and c.pooling_layer),
    "pooler_act": lambda c, head: (head in POOLED or (head == "Model" and c.pooling_layer)) and not predicts(c, head),
    "classifier_head": lambda c, head: head in (*POOLED, *OVER_TOKENS) or (head == "Model" and c.pooling_layer),
    "classifier_dropout": lambda c, head: head.endswith(("Classification", "MultipleChoice")),
    "patch_size": lambda c, head: c.stem != "backbone",
    "distillation_head": lambda c, head: head == "ForImageClassification",
    "decode_head": lambda c, head: head == "ForSemanticSegmentation",
    "decoder_hidden_size": lambda c, head: head == "ForSemanticSegmentation",
    "semantic_loss_ignore_index": lambda c, head: head == "ForSemanticSegmentation",
    "pooling_layer": lambda c, head: head == "Model",
    "embedding_size": lambda c, head: c.embedding_size != c.hidden_size,
    "lm_head_transform": lambda c, head: head == "ForMaskedLM",
    "lm_head_transform_bias": lambda c, head: (head == "ForMaskedLM" and c.lm_head_transform) or predicts(c, head),
    "lm_head_bias": lambda c, head: head in LM_HEADS,
    "train_lm_head_bias": lambda c, head: head in LM_HEADS and c.lm_head_bias,
    "scale_lm_head": lambda c, head: head in LM_HEADS,
    "tie_word_embeddings": lambda c, head: head in LM_HEADS,
}


@dataclass(frozen=True)
class Head:
    """A stock class.

    prefix: of the base model's tensor names. tensors: the lines of the head. fixed: our fields that this class fixes.
    """

    stock: str
    prefix: str = ""
    tensors: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """The table of one stock `model_type`; the instances are in families/. "Ours" are the classes of decero."""

    name: str
    ours: str  # the start of our class names: DeceroEncoder, DeceroDecoder, DeceroEncoderDecoder, DeceroVision ...
    fields: str
    fixed: Mapping[str, Any]  # our fields that have this value in every model of the family
    tensors: str
    heads: Mapping[str, Head]  # by the end of our class name
    to_ours: Callable[[Any], dict] = lambda stock: {}  # conversions beyond renaming: stock configuration -> our fields
    to_stock: Callable[[Any], dict] = lambda ours: {}
    for_4: Callable[[Any], dict] = lambda ours: {}  # options that transformers 4 reads and 5 does not write
    by_tensors: tuple[str, ...] = ()  # our fields that depend on the stock tensors, not on a stock option
    zeros: Mapping[str, str] = field(
        default_factory=dict
    )  # our field -> pattern of the stock tensors that are zero where it is False, because ours has none
    unread: str = ""  # stock fields that do not change the outputs, or that `to_ours` reads completely
    training: str = ""  # stock fields that only act in training and have no field of ours
    left_behind: str = "(?!)"  # pattern of tensors in files of this family that no model of ours has
    formula: Callable[[Any], dict[str, torch.Tensor]] = (
        lambda stock: {}
    )  # tensors that stock models store and we compute
    # The same model without scales that the family lacks: configuration of ours -> the same, and its tensors.
    fold_config: Callable[[Any], Any] = lambda ours: ours
    fold_tensors: Callable[[Any, Tensors], Tensors] = lambda ours, tensors: tensors
    loaders: Mapping[str, str] = field(default_factory=dict)  # head -> Auto class, where its name differs from ours
    also_loads: Mapping[str, str] = field(
        default_factory=dict
    )  # stock class -> the supported class that loads its files

    def our_class(self, head: str) -> Any:
        return getattr(decero.models, self.ours + head)

    def stock_class(self, head: str) -> Any:
        return getattr(transformers, self.heads[head].stock)

    def our_config(self, stock: PreTrainedConfig, head: str) -> Any:
        """Convert a stock configuration to ours, without checks."""
        ours = _carried(stock)
        for our_name, stock_name in _field_rows(self.fields):
            ours.setdefault(our_name, getattr(stock, stock_name))
        return _build(self.our_class("Config"), ours | self.to_ours(stock) | {**self.fixed, **self.heads[head].fixed})

    def stock_config(self, ours: PreTrainedConfig) -> Any:
        """Convert our configuration to a stock one, without checks."""
        ours = self.fold_config(ours)
        stock = _carried(ours)
        for our_name, stock_name in _field_rows(self.fields):
            stock.setdefault(stock_name, getattr(ours, our_name))
        return _build(CONFIG_MAPPING[self.name], stock | self.to_stock(ours))

    def check_import(self, stock: PreTrainedConfig, head: str) -> list[str]:
        """Raise UserError at a stock option without counterpart; return the lost options that only act in training."""
        again = self.stock_config(self.our_config(stock, head))
        unread = GENERIC | set(self.unread.split())
        training = {s for o, s in _field_rows(self.fields) if o in TRAINING} | set(self.training.split())
        lost = _differences(stock, again, (f.name for f in fields(stock) if f.name not in unread))  # type: ignore[arg-type]
        for name, (value, _) in lost.items():
            if name not in training:
                raise UserError(f"{self.name} option {name}={value!r} has no counterpart in decero")
        return [f"{name}={value!r} (only acts in training)" for name, (value, _) in lost.items()]

    def check_export(self, ours: PreTrainedConfig, head: str) -> list[str]:
        """Raise UserError at a field that the family cannot express; return the lost ones that only act in training."""
        if head not in self.heads:
            raise UserError(f"{self.name} has no {self.ours}{head} (it has {', '.join(self.heads)})")
        ours = self.fold_config(ours)
        if ours.mixer_type != "attention":
            raise UserError(f"mixer_type={ours.mixer_type!r} has no counterpart in {self.name}; use --to remote-code")
        names = [f.name for f in fields(ours) if f.name not in (*GENERIC, *self.by_tensors)]  # type: ignore[arg-type]
        used = [name for name in names if name not in ACTS or ACTS[name](ours, head)]
        fixed = SimpleNamespace(**{**self.fixed, **self.heads[head].fixed})
        self._refuse(ours, fixed, (name for name in used if hasattr(fixed, name)))  # first, since others depend on them
        return self._refuse(ours, self.our_config(self.stock_config(ours), head), used)

    def _refuse(self, ours: PreTrainedConfig, again: Any, names: Iterable[str]) -> list[str]:
        lost = _differences(ours, again, names)
        for name, (value, needs) in lost.items():
            if name not in TRAINING:
                raise UserError(f"{name}={value!r} has no counterpart in {self.name}, which has {needs!r}")
        return [f"{name}={value!r} (only acts in training)" for name, (value, _) in lost.items()]

    def translate(
        self, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], head: str, *, to_stock: bool
    ) -> dict[str, torch.Tensor]:
        """Convert tensors (or gradients) of one side to the names and layout of the other: `tensors.translate`."""
        our_prefix, stock_prefix = "" if head == "Model" else "model.", self.heads[head].prefix
        base = [(our_prefix + ours, stock_prefix + stock, *form) for ours, stock, *form in _rows(self.tensors)]
        return translate([*base, *_rows(self.heads[head].tensors)], tensors, wanted, to_stock=to_stock)


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip()]


def _field_rows(table: str) -> list[tuple[str, str]]:
    return [(row[0], row[-1]) for row in _rows(table)]


def _differences(one: Any, other: Any, names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    both = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _carried(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields that mean the same in every configuration."""
    return {
        name: getattr(config, name) for name in (*CARRIED, *KEPT_IF_THERE) if getattr(config, name, None) is not None
    }


def _build(config_class: type[PreTrainedConfig], values: dict[str, Any]) -> PreTrainedConfig:
    try:
        return config_class(**values)
    except (ValueError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise UserError(f"cannot convert the configuration to {config_class.__name__}: {reason}") from error
