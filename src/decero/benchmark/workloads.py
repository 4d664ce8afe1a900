"""What is timed: a work is a model's shape, a task and the texts of a step, the same for every arm."""

from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

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
    "decode": AutoModelForSeq2SeqLM,
}


def build_pair(name: str, work: Workload, seed: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Our model and the stock one with the very same weights, drawn from `seed`, in fp32.

    Raises UserError: a field that does not exist or sizes that do not fit, a family that cannot hold the model.
    """
    transformers.set_seed(seed)
    try:
        config = read_preset(work.model.config, work.model.overrides)
        if work.kind == "classification":
            config.num_labels, config.problem_type = 2, "single_label_classification"
        ours = AUTO_CLASSES[work.kind].from_config(config)
    except (StrictDataclassError, ValueError, KeyError, ArithmeticError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"works.{name}: {work.model.config} as {work.kind}: {said[:300]}") from error
    except UserError as error:
        raise UserError(f"works.{name}: {error}") from error
    positions = positions_of(ours) or work.length
    if config.position_embedding_type == "learned" and work.length > positions:
        raise UserError(f"works.{name}: length {work.length} exceeds the {positions} positions of {work.model.config}")
    try:
        return ours, to_stock(ours, work.stock)
    except UserError as error:
        raise UserError(f"works.{name}: stock {work.stock}: {error}") from error
