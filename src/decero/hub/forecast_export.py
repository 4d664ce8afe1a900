"""Say before a run as what its model will leave: as a stock model, or with its own code."""

from transformers import PreTrainedModel

import decero.models
from decero.errors import UserError
from decero.execution.pretraining_objective import HYBRID, objective_of
from decero.hub.families import FAMILIES
from decero.hub.stock import head_of, shape_of
from decero.hub.table import Family

# Presets whose models leave as stock models: shape -> hidden size, name in configs/model, family.
STOCK_PRESETS = {
    "DeceroEncoder": [(192, "modernbert_tiny", "modernbert"), (256, "modernbert_small", "modernbert"),
                      (768, "modernbert_base", "modernbert")],
    "DeceroDecoder": [(192, "modern_decoder_tiny", "stablelm"), (256, "modern_decoder_small", "llama"),
                      (768, "modern_decoder_base", "llama")],
    "DeceroEncoderDecoder": [(192, "t5_gated_tiny", "t5"), (256, "t5_gated_small", "t5"),
                             (512, "t5_v1_1_small", "t5")],
    "DeceroVision": [(128, "vit_tiny", "vit"), (384, "vit_small", "vit"), (768, "vit_base", "vit")],
}  # fmt: skip
LIKE = {"DeceroRecurrent": "DeceroDecoder", "DeceroRecurrentSeq2Seq": "DeceroEncoderDecoder"}
FINE_TUNED = {
    "ForSequenceClassification": "texts", "ForTokenClassification": "words", "ForQuestionAnswering": "answers",
    "ForMultipleChoice": "choices",
}  # fmt: skip


def find_family(ours: PreTrainedModel, head: str | None = None) -> tuple[Family | None, dict[str, str]]:
    """Return the first family that can hold the model, or None, and why each family before it cannot.

    head: instead of the model's own, such as ForSequenceClassification.
    """
    if head is None and objective_of(ours.config) == HYBRID and ours.can_generate():
        return None, {"": "none fills holes with a decoder's weights"}
    reasons: dict[str, str] = {}
    for family in FAMILIES:
        if family.ours == shape_of(ours):
            try:
                family.check_export(ours.config, head or head_of(ours))
                return family, reasons
            except UserError as error:
                reasons.setdefault(family.name, str(error))
    return None, reasons


def export_line(ours: PreTrainedModel) -> str | None:
    """Say in one line what `decero export` makes of a model of ours; None for another model.

    Names the heads with which it leaves otherwise, and the nearest preset that leaves as a stock model.
    """
    shape = shape_of(ours)
    if not hasattr(decero.models, f"{shape}Config") or not ours.config.model_type.startswith("decero_"):
        return None
    family, reasons = find_family(ours)
    head, like = head_of(ours), LIKE.get(shape, shape)
    if family is not None:
        others = {} if head in FINE_TUNED else FINE_TUNED  # a fine-tuned model has its head already
        lost = [what for name, what in others.items() if _has(shape, name) and find_family(ours, name)[0] is None]
        with_code = f"; fine-tuned for {', '.join(lost)} it leaves as remote code" if lost else ""
        return f"this model can be exported as {family.name}{with_code}"
    able = [family.name for family in FAMILIES if family.ours == like and head in family.heads]
    presets = [preset for preset in STOCK_PRESETS.get(like, []) if preset[2] in able]
    width = getattr(ours.config, "hidden_size", 0)
    near = min(presets, key=lambda preset: abs(preset[0] - width), default=None)
    why = next((reasons[name] for name in ["", *([near[2]] if near else able)] if name in reasons), None)
    why = why or ("no stock class has its head" if reasons and not able else "no stock class has its layers")
    advice = f"; configs/model/{near[1]}.yaml can be exported as {near[2]}" if near else ""
    return f"this model leaves as remote code, because {why.partition('; use')[0]}{advice}"


def _has(shape: str, head: str) -> bool:
    return hasattr(decero.models, shape + head)
