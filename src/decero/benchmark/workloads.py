"""Build the pair of models of a workload: decero and stock, with the same weights."""

from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from decero.benchmark.image_batches import CLASSES
from decero.config.benchmark import Workload
from decero.errors import UserError
from decero.execution.build import read_preset
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import StrictDataclassError
from decero.hub.stock import to_stock

AUTO_CLASSES: dict[str, Any] = {
    "mlm": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classification": AutoModelForSequenceClassification,
    "pictures": AutoModelForImageClassification,
    "decode": AutoModelForSeq2SeqLM,
}


def build_pair(name: str, work: Workload, seed: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Build the decero model from `seed`, and the stock model with the same weights, in fp32.

    Raises UserError for an unknown field, for sizes that do not fit, and for a family that cannot represent the model.
    """
    transformers.set_seed(seed)
    try:
        config = read_preset(work.model.config, work.model.overrides)
        if work.kind in ("classification", "pictures"):
            config.num_labels = 2 if work.kind == "classification" else CLASSES
            config.problem_type = "single_label_classification"
        ours = AUTO_CLASSES[work.kind].from_config(config)
    except (StrictDataclassError, ValueError, KeyError, ArithmeticError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"works.{name}: {work.model.config} as {work.kind}: {message[:300]}") from error
    except UserError as error:
        raise UserError(f"works.{name}: {error}") from error
    positions = positions_of(ours) or work.length
    if work.kind != "pictures" and config.position_embedding_type == "learned" and work.length > positions:
        raise UserError(f"works.{name}: length {work.length} exceeds the {positions} positions of {work.model.config}")
    try:
        return ours, to_stock(ours, work.stock)
    except UserError as error:
        raise UserError(f"works.{name}: stock {work.stock}: {error}") from error
